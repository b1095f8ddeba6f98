"""The API about repositories: who am I, create, look inside, tag, branch."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs

from tests.hub_server.call import Call
from tests.hub_server.card import read_card, tags_of
from tests.hub_server.git import Commit
from tests.hub_server.protocol import HubError, Reply, json_reply
from tests.hub_server.store import HubFile, Repo, is_repo_id


def whoami(call: Call) -> Reply:
    """GET /api/whoami-v2."""
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if call.user.can_write else "read"
    token = {"displayName": "test", "role": role}
    auth = {"type": "access_token", "accessToken": token}
    name = call.user.name
    return json_reply(
        {"type": "user", "id": name, "name": name, "fullname": name, "orgs": [], "auth": auth}
    )


def agent_harnesses(call: Call) -> Reply:
    """GET /api/agent-harnesses: none. The client asks now and then, and tests see the request."""
    return json_reply({"standardEnvVars": [], "harnesses": {}})


def create_repo(call: Call) -> Reply:
    """POST /api/repos/create; a repository that exists is 409 and its body holds the url."""
    wanted = call.request.json()
    namespace = wanted.get("organization") or (call.user.name if call.user else "")
    call.require_writer(namespace)
    repo_id = f"{namespace}/{wanted.get('name')}"
    if not is_repo_id(repo_id):
        raise HubError(400, f"Invalid repository name: {repo_id}")
    kind = f"{wanted.get('type') or 'model'}s"
    if kind not in ("models", "datasets", "spaces"):
        raise HubError(400, f"Invalid repository type: {kind[:-1]}")
    path = repo_id if kind == "models" else f"{kind}/{repo_id}"
    answer = {"url": f"{call.site.endpoint}/{path}", "name": repo_id, "id": repo_id}
    if not call.site.store.create(kind, repo_id, wanted.get("visibility") == "private"):
        raise HubError(409, f"You already created this {kind[:-1]} repo: {repo_id}", **answer)
    return json_reply(answer)


def repo_info(call: Call) -> Reply:
    """GET /api/models/{id}[/revision/{rev}]; `blobs` adds sizes and hashes."""
    repo = call.repo()
    commit = call.commit_of(repo)
    files = {path: f for path, f in repo.files(commit).items() if f.entry.kind == "blob"}
    card = _card(repo, files)
    history = repo.git.log(commit)
    info = {
        "_id": repo.id, "id": repo.id, "modelId": repo.id, "author": repo.namespace,
        "sha": commit, "private": repo.private, "disabled": False,
        "gated": "manual" if repo.gated else False,
        "createdAt": _date(history[-1]), "lastModified": _date(history[0]),
        "downloads": 0, "likes": 0, "tags": tags_of(card), "cardData": card,
        "siblings": [_sibling(f, "blobs" in call.request.query) for f in files.values()],
        "usedStorage": sum(f.size for f in files.values()),
    }  # fmt: skip
    shown = ("library_name", "pipeline_tag", "model-index")
    return json_reply(info | {key: card[key] for key in shown if key in card})


def _card(repo: Repo, files: dict[str, HubFile]) -> dict[str, Any]:
    """The metadata of the repository's README, if there is one."""
    readme = files.get("README.md")
    if readme is None or readme.pointer is not None:
        return {}
    content = repo.git.blobs([readme.entry.oid])[readme.entry.oid]
    return read_card(content.decode("utf-8", "replace"))[0]


def _sibling(file: HubFile, with_blobs: bool) -> dict[str, Any]:
    """A file as model info lists it."""
    sibling: dict[str, Any] = {"rfilename": file.entry.path}
    if with_blobs:
        sibling |= {"size": file.size, "blobId": file.entry.oid}
        if file.pointer:
            lfs = {"sha256": file.pointer.oid, "size": file.size, "pointerSize": file.entry.size}
            sibling["lfs"] = lfs
    return sibling


def tree(call: Call) -> Reply:
    """GET /api/models/{id}/tree/{rev}[/{path}]; `recursive` goes down into folders."""
    repo = call.repo()
    files = repo.files(call.commit_of(repo))
    folder = call.args.get("path", "").strip("/")
    if folder and folder not in files:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound")
    prefix = f"{folder}/" if folder else ""
    inside = {path: f for path, f in files.items() if path.startswith(prefix)}
    if call.request.query.get("recursive", "").lower() not in ("true", "1"):
        inside = {path: f for path, f in inside.items() if "/" not in path[len(prefix) :]}
    return json_reply([_tree_entry(f) for f in inside.values()])


def paths_info(call: Call) -> Reply:
    """POST /api/models/{id}/paths-info/{rev}, a form of `paths`; unknown ones are left out."""
    repo = call.repo()
    files = repo.files(call.commit_of(repo))
    asked = parse_qs(call.request.body.decode()).get("paths", [])
    return json_reply([_tree_entry(files[path]) for path in asked if path in files])


def _tree_entry(file: HubFile) -> dict[str, Any]:
    """A file or folder as the tree lists it."""
    kind = "directory" if file.entry.kind == "tree" else "file"
    entry: dict[str, Any] = {"type": kind, "oid": file.entry.oid, "path": file.entry.path}
    entry["size"] = file.size
    if file.pointer:
        lfs = {"oid": file.pointer.oid, "size": file.size, "pointerSize": file.entry.size}
        entry["lfs"] = lfs
    return entry


def refs(call: Call) -> Reply:
    """GET /api/models/{id}/refs."""
    found = call.repo().git.refs()

    def under(prefix: str, cut: str = "") -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(cut or prefix), "ref": ref, "targetCommit": commit}
            for ref, commit in found.items()
            if ref.startswith(prefix)
        ]

    answer = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if call.request.query.get("include_prs"):
        answer["pullRequests"] = under("refs/pr/", "refs/")
    return json_reply(answer)


def commits(call: Call) -> Reply:
    """GET /api/models/{id}/commits/{rev}, newest first and all on one page."""
    repo = call.repo()
    history = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.body.strip(),
            "authors": [{"user": commit.author}],
            "date": _date(commit),
        }
        for commit in repo.git.log(call.commit_of(repo))
    ]
    return json_reply(history, headers={"X-Total-Count": str(len(history))})


def auth_check(call: Call) -> Reply:
    """GET /api/models/{id}/auth-check."""
    call.repo_files()
    return json_reply({})


def auth_check_write(call: Call) -> Reply:
    """GET /api/models/{id}/auth-check/write."""
    call.repo(write=True)
    return json_reply({})


def validate_yaml(call: Call) -> Reply:
    """POST /api/validate-yaml: errors refuse a README, warnings do not."""
    card, errors = read_card(str(call.request.json().get("content", "")))
    warnings = [] if card or errors else ["empty or missing yaml metadata in repo card"]
    answer = {
        "errors": [{"message": text} for text in errors],
        "warnings": [{"message": text} for text in warnings],
    }
    return json_reply(answer, status=400 if errors else 200)


def create_tag(call: Call) -> Reply:
    """POST /api/models/{id}/tag/{rev}; a message makes it an annotated tag."""
    repo = call.repo(write=True)
    wanted = call.request.json()
    _add_ref(repo, f"refs/tags/{wanted.get('tag')}", call.commit_of(repo), wanted.get("message"))
    return json_reply({})


def create_branch(call: Call) -> Reply:
    """POST /api/models/{id}/branch/{branch} from `startingPoint`, or from main."""
    repo = call.repo(write=True)
    start = call.request.json().get("startingPoint") or "main"
    commit = repo.git.resolve(start)
    if commit is None:
        raise HubError(404, f"Invalid rev id: {start}", "RevisionNotFound")
    _add_ref(repo, f"refs/heads/{call.args['branch']}", commit)
    return json_reply({})


def _add_ref(repo: Repo, ref: str, commit: str, message: str | None = None) -> None:
    """Add a tag or branch, or refuse: 400 for a name git does not take, 409 for one in use."""
    if not repo.git.is_ref_name(ref):
        raise HubError(400, f"Invalid reference name: {ref}")
    with repo.lock:
        if ref in repo.git.refs():
            raise HubError(409, f"Reference already exists: {ref}")
        repo.git.add_ref(ref, commit, message)


def _date(commit: Commit) -> str:
    """The date of a commit in the only format that the client reads."""
    return datetime.fromtimestamp(commit.seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
