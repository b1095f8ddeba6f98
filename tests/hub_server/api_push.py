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
    repo = call.repo_to_change()
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
    repo = _repo_to_upload_to(call)
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


def _repo_to_upload_to(call: Call) -> Repo:
    """Objects may be for a pull request, and the protocol of LFS does not say so."""
    repo = call.repo_files()
    call.require_writer(call.user.name if call.user else "", "RepoNotFound")
    return repo


def _upload_actions(call: Call, repo: Repo, oid: str) -> dict[str, Any]:
    """The two steps of an upload: PUT to the storage, then tell the Hub to verify."""
    put = call.site.storage.sign("PUT", f"/storage/{repo.kind}/{repo.id}/{oid}")
    verify = f"{call.site.endpoint}{repo.url_path}.git/info/lfs/verify"
    return {"upload": {"href": put, "header": {}}, "verify": {"href": verify, "header": {}}}


def lfs_verify(call: Call) -> Reply:
    """POST /{id}.git/info/lfs/verify: whether an object has arrived whole."""
    repo = _repo_to_upload_to(call)
    claimed = call.request.json()
    if repo.lfs.size(claimed["oid"]) != claimed["size"]:
        raise HubError(404, f"No such LFS object of {claimed['size']} bytes: {claimed['oid']}")
    return json_reply({})


def commit(call: Call) -> Reply:
    """POST /api/models/{id}/commit/{rev}: every line of the body in one git commit, or nothing.

    The repository's lock makes the check of `parentCommit` and the commit one step, so of several
    pushes from one parent a single one wins and the rest get 412. With ``create_pr`` it goes to a
    new ref of its own, from whatever parent.
    """
    repo = call.repo_to_change()
    header, operations = _parse(call.request.body)
    message = f"{header.get('summary', '')}\n\n{header.get('description', '')}".strip()
    author = call.user.name if call.user else ""
    proposed = bool(call.request.query.get("create_pr"))
    with repo.lock:
        head = _parent(call, repo, header.get("parentCommit"), proposed)
        ref = repo.new_pull_request() if proposed else _ref_of(call.args["rev"])
        oid = repo.git.commit(ref, head, _changes(repo, head, operations), author, message)
    page = f"{call.site.endpoint}{repo.url_path}"
    answer = {"success": True, "commitOid": oid, "hookOutput": ""}
    answer["commitUrl"] = f"{page}/commit/{oid}"
    if proposed:
        answer["pullRequestUrl"] = f"{page}/discussions/{ref.split('/')[-1]}"
    return json_reply(answer)


def _ref_of(revision: str) -> str:
    """A branch by its name, a pull request by its full ref."""
    return revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"


def _parent(call: Call, repo: Repo, claimed: str | None, proposed: bool) -> str:
    """The commit to build on, or 412 where the branch is not what the client thinks it is."""
    revision = call.args["rev"]
    head = repo.git.refs().get(_ref_of(revision))
    if head is None:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if claimed is None or head.startswith(claimed.lower()):
        return head
    older = repo.git.resolve(claimed.lower()) if proposed else None
    if older is None:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    return older


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
