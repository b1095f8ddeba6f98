"""HubServer: the whole Hub as one context manager, with its tokens, faults and list of requests."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.hub_server.call import Site
from tests.hub_server.faults import Fault, Faults, When
from tests.hub_server.handler import LoopbackServer
from tests.hub_server.protocol import HubError, Reply, Request
from tests.hub_server.routes import dispatch
from tests.hub_server.signing import SignedUrls
from tests.hub_server.store import Store
from tests.hub_server.users import Users

DROPPED = 0  # stands for the status of a request whose connection was dropped


class Exchange(NamedTuple):
    """What is remembered of a request; the path is as sent, without its query."""

    method: str
    path: str
    status: int


class HubServer:
    """A Hugging Face Hub on loopback, serving the repositories under `root`.

    Args:
        root: Folder for the repositories; one that another HubServer filled is served again.
        port: Port on 127.0.0.1, or 0 for a free one.
        on_request: Called with each request after it was answered.

    Attributes:
        endpoint: What HF_ENDPOINT, or `HfApi(endpoint=...)`, should be.
        requests: Every request so far, in the order of their replies.
    """

    def __init__(
        self, root: Path, port: int = 0, on_request: Callable[[Exchange], None] | None = None
    ) -> None:
        self._users = Users()
        self._faults = Faults()
        self._on_request = on_request
        self._server = LoopbackServer(port, self._answer)
        port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.requests: list[Exchange] = []
        # The same socket by another name is another origin, as the Hub's storage is.
        self._site = Site(self.endpoint, Store(root), SignedUrls(f"http://localhost:{port}"))

    def __enter__(self) -> HubServer:
        # The poll interval is how long leaving the context may take.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self, user: str, write: bool = False) -> str:
        """A new token of a user, for reading his own and public repositories, or for writing too.

        A user need not be made first: he owns the namespace of his name.
        """
        return self._users.new_token(user, write)

    def gate(self, repo_id: str, *users: str, kind: str = "models") -> None:
        """Keep a repository's files for its owner and these users, as a gated model's are."""
        repo = self._site.store.find(kind, repo_id)
        if repo is None:
            raise ValueError(f"there is no repository {repo_id} to gate")
        repo.gate(users)

    def env(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment for a subprocess that takes this server for the Hub.

        Args:
            home: Its HF_HOME, and so its cache.
            token: Its HF_TOKEN, if it has one.

        Returns:
            The present environment with every Hugging Face variable replaced.
        """
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        ours |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        ours |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return kept | ours | ({"HF_TOKEN": token} if token else {})

    def fail(
        self,
        method: str,
        path_regex: str,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
    ) -> None:
        """Answer the next matching requests with an error, and do nothing else.

        Args:
            method: HTTP method in capitals, or "*" for any.
            path_regex: Searched in the path as sent, for example `r"/commit/main$"`.
            status: HTTP status.
            headers: More headers, such as Retry-After or X-Error-Code.
            times: How many requests meet the fault.
        """
        reply = HubError(status, f"Injected fault: {status}", headers=headers).reply()
        self._faults.arm(Fault(method, re.compile(path_regex), times, reply=reply))

    def drop(self, method: str, path_regex: str, *, when: When = "before", times: int = 1) -> None:
        """Drop the connection of the next matching requests without a reply.

        Args:
            method: HTTP method in capitals, or "*" for any.
            path_regex: Searched in the path as sent.
            when: "before" the request takes effect, or "after" it did and only the reply is lost;
                "midway" half of the reply's body arrives.
            times: How many requests meet the fault.
        """
        if when not in ("before", "midway", "after"):
            raise ValueError(f'when must be "before", "midway" or "after", not {when!r}')
        self._faults.arm(Fault(method, re.compile(path_regex), times, drop=when))

    def calm(self) -> None:
        """Forget the faults that are still armed."""
        self._faults.disarm()

    def _answer(self, request: Request) -> Reply | None:
        """The reply to a request, or None to drop it, after any armed fault."""
        fault = self._faults.take(request)
        if fault is not None and fault.reply is not None:
            reply: Reply | None = fault.reply
        elif fault is not None and fault.drop == "before":
            reply = None
        else:
            reply = dispatch(self._site, self._users, request)
        if fault is not None and fault.drop == "after":
            reply = None
        if fault is not None and fault.drop == "midway" and reply is not None:
            reply = replace(reply, cut=True)
        exchange = Exchange(
            request.method, request.path, DROPPED if reply is None else reply.status
        )
        self.requests.append(exchange)
        if self._on_request is not None:
            self._on_request(exchange)
        return reply
