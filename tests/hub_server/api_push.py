"""The API that a push goes through: preupload, the LFS batch and its verification, the commit."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from tests.hub_server.call import Call
from tests.hub_server.git import Change
from tests.hub_server.lfs import Pointer
from tests.hub_server.protocol import HubError, Reply, json_reply
from tests.hub_server.store import LFS_SUFFIXES, Repo

REGULAR_MAX_SIZE = 10 * 1024**2  # bytes; larger files go to LFS whatever they hold

Operation = tuple[str, dict[str, Any]]

_DELETED = {"deletedFile": "blob", "deletedFolder": "tree"}


def preupload(call: Call) -> Reply:
    """POST /api/models/{id}/preupload/{rev}: how to send each file, and what is there already.

    The `oid` of a file that exists lets the client leave out what has not changed.
    """
    _refuse_pull_request(call)
    repo = call.repo(write=True)
    files = repo.files(call.commit_of(repo))
    answer = []
    for asked in call.request.json().get("files", []):
        here = files.get(asked["path"])
        oid = None if here is None else here.pointer.oid if here.pointer else here.entry.oid
        mode = "lfs" if _belongs_to_lfs(asked) else "regular"
        answer.append(
            {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
        )
    return json_reply({"files": answer})


def _belongs_to_lfs(asked: dict[str, Any]) -> bool:
    """Whether a file is large by its name or size, or binary by its first bytes."""
    if asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > REGULAR_MAX_SIZE:
        return True
    return b"\0" in base64.b64decode(asked.get("sample") or "")


def lfs_batch(call: Call) -> Reply:
    """POST /{id}.git/info/lfs/objects/batch: where to PUT the objects that are not here yet."""
    repo = call.repo(write=True)
    wanted = call.request.json()
    if wanted.get("operation") != "upload":
        raise HubError(501, "This test Hub takes LFS uploads only; download through resolve")
    objects = []
    for asked in wanted.get("objects", []):
        item = {"oid": asked["oid"], "size": asked["size"]}
        if repo.lfs.size(asked["oid"]) is None:
            item["actions"] = _upload_actions(call, repo, asked["oid"])
        objects.append(item)
    return json_reply({"transfer": "basic", "objects": objects})


def _upload_actions(call: Call, repo: Repo, oid: str) -> dict[str, Any]:
    """The two steps of an upload: PUT to the storage, then tell the Hub to verify."""
    put = call.site.storage.sign("PUT", f"/storage/{repo.kind}/{repo.id}/{oid}")
    verify = f"{call.site.endpoint}{repo.url_path}.git/info/lfs/verify"
    return {"upload": {"href": put, "header": {}}, "verify": {"href": verify, "header": {}}}


def lfs_verify(call: Call) -> Reply:
    """POST /{id}.git/info/lfs/verify: whether an object has arrived whole."""
    repo = call.repo(write=True)
    claimed = call.request.json()
    if repo.lfs.size(claimed["oid"]) != claimed["size"]:
        raise HubError(404, f"No such LFS object of {claimed['size']} bytes: {claimed['oid']}")
    return json_reply({})


def commit(call: Call) -> Reply:
    """POST /api/models/{id}/commit/{rev}: every line of the body in one git commit, or nothing.

    The repository's lock makes the check of `parentCommit` and the commit one step, so of several
    pushes from one parent a single one wins and the rest get 412.
    """
    _refuse_pull_request(call)
    repo = call.repo(write=True)
    header, operations = _parse(call.request.body)
    branch = call.args["rev"]
    message = f"{header.get('summary', '')}\n\n{header.get('description', '')}".strip()
    with repo.lock:
        head = repo.git.refs().get(f"refs/heads/{branch}")
        if head is None:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if not head.startswith(str(header.get("parentCommit", head)).lower()):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes = _changes(repo, head, operations)
        oid = repo.git.commit(branch, head, changes, repo.namespace, message)
    url = f"{call.site.endpoint}{repo.url_path}/commit/{oid}"
    return json_reply({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _refuse_pull_request(call: Call) -> None:
    if call.request.query.get("create_pr"):
        raise HubError(501, "This test Hub has no pull requests")


def _parse(body: bytes) -> tuple[dict[str, Any], list[Operation]]:
    """The header and the operations of an NDJSON body."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        operations = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(400, f"The commit is not NDJSON of key and value: {error!r}") from error
    if not operations or operations[0][0] != "header":
        raise HubError(400, "The first line of a commit must be its header")
    return operations[0][1], operations[1:]


def _changes(repo: Repo, head: str, operations: list[Operation]) -> list[Change]:
    """What the operations do to the files, each checked against the head and those before it."""
    known = {path: file.entry.kind for path, file in repo.files(head).items()}
    changes = []
    for key, value in operations:
        path = _checked_path(value)
        if key in _DELETED:
            if known.pop(path, None) != _DELETED[key]:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            changes.append(Change(path, None))
        else:
            changes.append(Change(path, _content(repo, key, path, value)))
            known[path] = "blob"
    return changes


def _content(repo: Repo, key: str, path: str, value: dict[str, Any]) -> bytes:
    """What git keeps of a file that is added: itself, or its pointer."""
    if key == "file":
        return _decoded(path, value)
    if key == "lfsFile":
        return _pointer(repo, path, value).content()
    raise HubError(400, f"Unknown operation {key!r} on {path}")


def _checked_path(value: dict[str, Any]) -> str:
    """The operation's path, if it stays inside the repository."""
    path = str(value.get("path", "")).rstrip("/")
    if any(part in ("", ".", "..", ".git") for part in path.split("/")) or "\0" in path:
        raise HubError(400, f"Invalid path: {path!r}")
    return path


def _decoded(path: str, value: dict[str, Any]) -> bytes:
    """The content of a regular file."""
    if value.get("encoding") != "base64":
        return str(value["content"]).encode()
    try:
        return base64.b64decode(value["content"], validate=True)
    except binascii.Error as error:
        raise HubError(400, f"The content of {path} is not base64: {error}") from error


def _pointer(repo: Repo, path: str, value: dict[str, Any]) -> Pointer:
    """The pointer of a large file, whose object must have arrived before."""
    size = repo.lfs.size(value["oid"])
    if size is None or size != value.get("size", size):
        raise HubError(400, f"{path} points to an LFS object that was not uploaded: {value['oid']}")
    return Pointer(value["oid"], size)
