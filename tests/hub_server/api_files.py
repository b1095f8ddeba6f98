"""The files themselves: resolve on the API's origin, large files on the storage's."""

from __future__ import annotations

import re

from tests.hub_server.call import Call
from tests.hub_server.protocol import HubError, Reply, Request

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def resolve(call: Call) -> Reply:
    """HEAD or GET /{id}/resolve/{rev}/{path}: the file, or for a large one where it lies.

    A missing file still tells the commit: the client remembers with it what is not there.
    """
    repo = call.repo_files()
    commit = call.commit_of(repo)
    head = {"X-Repo-Commit": commit}
    file = repo.files(commit).get(call.args["path"])
    if file is None or file.entry.kind != "blob":
        raise HubError(404, "Entry not found", "EntryNotFound", head)
    if file.pointer is None:
        content = repo.git.blobs([file.entry.oid])[file.entry.oid]
        return _content(call.request, content, head | {"ETag": f'"{file.entry.oid}"'})
    oid = file.pointer.oid
    head |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(file.size)}
    where = call.site.storage.sign("GET", f"/storage/{repo.kind}/{repo.id}/{oid}")
    return Reply(302, b"", head | {"Location": where})


def download(call: Call) -> Reply:
    """GET /storage/...: a large file, for the bearer of a signed address."""
    content = None
    call.site.storage.check(call.request)
    if repo := call.site.store.find(call.args["kind"], call.args["repo"]):
        content = repo.lfs.read(call.args["oid"])
    if content is None:
        raise HubError(404, "No such object")
    return _content(call.request, content, {"ETag": f'"{call.args["oid"]}"'})


def upload(call: Call) -> Reply:
    """PUT /storage/...: keep a large file, if its bytes hash to its name."""
    call.site.storage.check(call.request)
    repo = call.site.store.find(call.args["kind"], call.args["repo"])
    if repo is None:
        raise HubError(404, "No such repository")
    if not repo.lfs.write(call.args["oid"], call.request.body):
        raise HubError(400, "The body does not hash to the object's name")
    return Reply(200, b"", {"ETag": f'"{call.args["oid"]}"'})


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    """The bytes asked for: all, or from where an interrupted download left off."""
    head = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    match = _RANGE.fullmatch(request.headers.get("Range") or "")
    if match is None:
        return Reply(200, content, head)
    first, size = int(match[1]), len(content)
    last = min(int(match[2] or size), size - 1)
    if first > last:
        whole = {"Content-Range": f"bytes */{size}"}
        raise HubError(416, "The range lies outside the file", headers=whole)
    part = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return Reply(206, content[first : last + 1], head | part)
