"""The table of routes, and how a request becomes a reply.

Patterns see the path as sent: a revision such as `refs/pr/1` is one encoded segment. Whatever is
not in the table is 501, so that a test never takes a missing feature for a missing repository.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from urllib.parse import unquote

from tests.hub_server import api, api_files, api_push
from tests.hub_server.call import Call, Site
from tests.hub_server.protocol import HubError, Reply, Request
from tests.hub_server.users import Users

Handler = Callable[[Call], Reply]

_REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_REPO}"
_PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{_REPO}"
_STORAGE = r"/storage/(?P<kind>\w+)/(?P<repo>[^/]+/[^/]+)/(?P<oid>\w+)"
_REV = r"(?P<rev>[^/]+)"

_TABLE: tuple[tuple[str, str, Handler], ...] = (
    ("GET", r"/api/whoami-v2", api.whoami),
    ("GET", r"/api/agent-harnesses", api.agent_harnesses),
    ("POST", r"/api/repos/create", api.create_repo),
    ("POST", r"/api/validate-yaml", api.validate_yaml),
    ("GET", _API, api.repo_info),
    ("GET", rf"{_API}/revision/{_REV}", api.repo_info),
    ("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.+))?", api.tree),
    ("POST", rf"{_API}/paths-info/{_REV}", api.paths_info),
    ("GET", rf"{_API}/refs", api.refs),
    ("GET", rf"{_API}/commits/{_REV}", api.commits),
    ("GET", rf"{_API}/auth-check", api.auth_check),
    ("GET", rf"{_API}/auth-check/write", api.auth_check_write),
    ("POST", rf"{_API}/tag/{_REV}", api.create_tag),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", api.create_branch),
    ("POST", rf"{_API}/preupload/{_REV}", api_push.preupload),
    ("POST", rf"{_API}/commit/{_REV}", api_push.commit),
    ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", api_push.lfs_batch),
    ("POST", rf"{_PAGE}\.git/info/lfs/verify", api_push.lfs_verify),
    ("PUT", _STORAGE, api_files.upload),
    ("GET", _STORAGE, api_files.download),
    ("GET", rf"{_PAGE}/resolve/{_REV}/(?P<path>.+)", api_files.resolve),
)
_ROUTES = [(method, re.compile(pattern), handler) for method, pattern, handler in _TABLE]


def dispatch(site: Site, users: Users, request: Request) -> Reply:
    """Answer a request; every refusal and every accident becomes a reply."""
    try:
        handler, args = _find(request)
        user = users.identify(request.headers.get("Authorization"))
        return handler(Call(site, request, args, user))
    except HubError as refusal:
        return refusal.reply()
    except Exception as error:  # a bug of this server must reach the test as a status
        traceback.print_exc()
        return HubError(500, f"The test Hub broke: {error!r}").reply()


def _find(request: Request) -> tuple[Handler, dict[str, str]]:
    """The handler for a request and the decoded groups of its pattern."""
    method = "GET" if request.method == "HEAD" else request.method
    for route_method, pattern, handler in _ROUTES:
        if method == route_method and (match := pattern.fullmatch(request.path)):
            args = {key: unquote(value) for key, value in match.groupdict().items() if value}
            return handler, {"kind": "models", **args}
    raise HubError(501, f"This test Hub does not speak {request.method} {request.path}")
