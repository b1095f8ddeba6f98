"""The test Hub against the real client: what other tests lean on must itself be sure.

Most tests call `HfApi(endpoint=...)` in this process, with the settings the client reads at
import set by a fixture. What only HF_ENDPOINT can show runs in a subprocess.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

import httpx2
import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_client import publish, use_hub
from tests.hub_server import DROPPED, HubServer

REPO = "alice/slim"
README = b"---\nlicense: mit\nlibrary_name: timm\ntags: [pruned]\n---\n# Slim\n"
WEIGHTS = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def plain_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client online and without Xet, whatever this process was started with."""
    # With telemetry on it would ask HF_ENDPOINT, here still the real Hub, for a list of agents.
    settings = {"HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
    for name, value in {**settings, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def alice(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token("alice", write=True))


@pytest.fixture
def reader(hub: HubServer) -> HfApi:
    """Alice again, with a token that may only read."""
    return HfApi(endpoint=hub.endpoint, token=hub.token("alice"))


@pytest.fixture
def bob(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token("bob", write=True))


@pytest.fixture
def nobody(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def model_files() -> list[CommitOperationAdd]:
    """A card, and weights that must go to LFS."""
    return [add("README.md", README), add("model.safetensors", WEIGHTS)]


def push(api: HfApi, *files: CommitOperationAdd | CommitOperationDelete, **options: str) -> str:
    """One commit to REPO; returns its hash."""
    options = {"commit_message": "Push", **options}
    return api.create_commit(REPO, list(files) or model_files(), **options).oid


def history(api: HfApi) -> list[str]:
    return [commit.title for commit in api.list_repo_commits(REPO)]


def fetch(api: HfApi, path: str, cache: Path, **options: str) -> bytes:
    return Path(api.hf_hub_download(REPO, path, cache_dir=cache, **options)).read_bytes()


# Repositories ------------------------------------------------------------------------------------


def test_create_repo_once_and_again(hub: HubServer, alice: HfApi) -> None:
    assert alice.create_repo(REPO) == f"{hub.endpoint}/alice/slim"
    assert alice.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError) as refused:
        alice.create_repo(REPO)
    assert refused.value.response.status_code == 409
    assert refused.value.response.json()["url"] == f"{hub.endpoint}/alice/slim"
    assert history(alice) == ["initial commit"]


@pytest.mark.parametrize("name", ["alice/..", "alice/a--b", "alice/slim.git"])
def test_repo_names_stay_inside_the_root(hub: HubServer, name: str) -> None:
    body = f'{{"name": "{name.split("/")[1]}", "organization": "alice"}}'.encode()
    token = hub.token("alice", write=True)
    request = urllib.request.Request(
        f"{hub.endpoint}/api/repos/create", body, {"Authorization": f"Bearer {token}"}
    )
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400


def test_whoami_tells_the_role(alice: HfApi, reader: HfApi) -> None:
    roles = [api.whoami()["auth"]["accessToken"]["role"] for api in (alice, reader)]
    assert (alice.whoami()["name"], roles) == ("alice", ["write", "read"])


def test_a_restarted_server_keeps_its_repositories(tmp_path: Path) -> None:
    for title in ("first", "second"):
        with HubServer(tmp_path) as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.token("alice", write=True))
            api.create_repo(REPO, private=True, exist_ok=True)
            push(api, add(f"{title}.txt", b"x"), commit_message=title)
    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("alice"))
        assert history(api) == ["second", "first", "initial commit"]
        assert api.model_info(REPO).private


# Pushes ------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_and_comes_back_byte_for_byte(
    hub: HubServer, alice: HfApi, nobody: HfApi, tmp_path: Path
) -> None:
    alice.create_repo(REPO)
    oid = push(alice, *model_files(), add("figures/a b%é.svg", b"<svg/>"))
    assert history(alice) == ["Push", "initial commit"]
    assert alice.model_info(REPO).sha == oid
    assert fetch(nobody, "README.md", tmp_path) == README
    assert fetch(nobody, "model.safetensors", tmp_path) == WEIGHTS
    assert fetch(nobody, "figures/a b%é.svg", tmp_path) == b"<svg/>"
    put = [call for call in hub.requests if call.method == "PUT"]
    assert [call.status for call in put] == [200] and "/storage/models/alice/slim/" in put[0].path


def test_an_identical_second_push_is_no_commit(hub: HubServer, alice: HfApi) -> None:
    alice.create_repo(REPO)
    first = push(alice)
    assert push(alice) == first
    assert len(history(alice)) == 2
    assert [call.method for call in hub.requests].count("PUT") == 1


def test_a_stale_parent_is_412_and_changes_nothing(alice: HfApi) -> None:
    alice.create_repo(REPO)
    parent = alice.model_info(REPO).sha
    head = push(alice, parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as refused:
        push(alice, add("late.txt", b"late"), parent_commit=parent)
    assert refused.value.response.status_code == 412
    assert alice.model_info(REPO).sha == head


def test_of_eight_racing_pushes_one_wins(alice: HfApi) -> None:
    alice.create_repo(REPO)
    parent = alice.model_info(REPO).sha
    start = threading.Barrier(8)

    def race(number: int) -> int:
        start.wait()
        try:
            push(alice, add(f"{number}.txt", b"mine"), parent_commit=parent)
        except HfHubHTTPError as refused:
            return refused.response.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(race, range(8))) == [200] + [412] * 7
    assert len(history(alice)) == 2
    assert len(alice.list_repo_files(REPO)) == 2  # .gitattributes and the winner's


def test_deletion_leaves_history_and_refuses_what_is_not_there(alice: HfApi) -> None:
    alice.create_repo(REPO)
    first = push(alice, *model_files(), add("old/a.txt", b"a"), add("old/b.txt", b"b"))
    push(alice, add("new.txt", b"n"), CommitOperationDelete("model.safetensors"))
    push(alice, CommitOperationDelete("old/"))
    assert set(alice.list_repo_files(REPO)) == {".gitattributes", "README.md", "new.txt"}
    assert "old/a.txt" in alice.list_repo_files(REPO, revision=first)
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        push(alice, add("other.txt", b"o"), CommitOperationDelete("model.safetensors"))
    assert "other.txt" not in alice.list_repo_files(REPO)


def test_tags_branches_and_revisions(alice: HfApi, tmp_path: Path) -> None:
    alice.create_repo(REPO)
    first = push(alice, add("a.txt", b"one"))
    alice.create_tag(REPO, tag="v1", tag_message="First")
    alice.create_branch(REPO, branch="next/try", revision=first)
    second = push(alice, add("a.txt", b"two"), revision="next/try")
    got = {rev: fetch(alice, "a.txt", tmp_path, revision=rev) for rev in ("v1", "next/try", first)}
    assert got == {"v1": b"one", "next/try": b"two", first: b"one"}
    refs = alice.list_repo_refs(REPO)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "next/try": second}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert alice.model_info(REPO, revision="v1").sha == first
    with pytest.raises(HfHubHTTPError, match="409"):
        alice.create_tag(REPO, tag="v1")
    alice.create_tag(REPO, tag="v1", exist_ok=True)


def test_anyone_with_a_write_token_opens_a_pull_request(
    hub: HubServer, alice: HfApi, bob: HfApi, tmp_path: Path
) -> None:
    alice.create_repo(REPO)
    first = push(alice)
    for number in (1, 2):
        files = [add("README.md", README + b"%d" % number), add("new.safetensors", WEIGHTS[:99])]
        proposed = bob.create_commit(REPO, files, commit_message="Mine", create_pr=True)
        assert (proposed.pr_num, proposed.pr_revision) == (number, f"refs/pr/{number}")
        assert proposed.pr_url == f"{hub.endpoint}/{REPO}/discussions/{number}"
    assert alice.model_info(REPO).sha == first
    assert fetch(alice, "README.md", tmp_path, revision="refs/pr/2") == README + b"2"
    refs = alice.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1", "refs/pr/2"]
    assert alice.list_repo_refs(REPO).pull_requests is None
    push(alice, add("more.txt", b"x"), revision="refs/pr/1")
    assert "more.txt" in alice.list_repo_files(REPO, revision="refs/pr/1")
    reader = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
    with pytest.raises(HfHubHTTPError, match="write token"):
        reader.create_commit(REPO, [add("a", b"a")], commit_message="No", create_pr=True)


def test_missing_things_are_told_apart(alice: HfApi, tmp_path: Path) -> None:
    alice.create_repo(REPO)
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(alice, "nothing.txt", tmp_path)
    with pytest.raises(RevisionNotFoundError):
        fetch(alice, "README.md", tmp_path, revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        alice.hf_hub_download("alice/other", "README.md", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="does not speak"):
        alice.delete_repo(REPO)


def test_model_info_tree_and_card(alice: HfApi) -> None:
    alice.create_repo(REPO)
    push(alice, *model_files(), add("figures/width.txt", b"w"))
    info = alice.model_info(REPO, files_metadata=True)
    assert (info.card_data.license, info.tags) == ("mit", ["timm", "pruned", "license:mit"])
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes["model.safetensors"] == len(WEIGHTS)
    flat = {entry.path: entry for entry in alice.list_repo_tree(REPO)}
    assert flat.keys() == {".gitattributes", "README.md", "figures", "model.safetensors"}
    assert flat["model.safetensors"].lfs.size == len(WEIGHTS) and flat["README.md"].lfs is None
    assert [e.path for e in alice.list_repo_tree(REPO, "figures")] == ["figures/width.txt"]
    assert [e.path for e in alice.get_paths_info(REPO, ["README.md", "no"])] == ["README.md"]


def test_a_card_that_is_not_yaml_is_refused_before_the_push(alice: HfApi) -> None:
    alice.create_repo(REPO)
    with pytest.raises(ValueError, match="Invalid metadata in README"):
        push(alice, add("README.md", b"---\nlicense: [mit\n---\n"))
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(alice, add("README.md", b"# No head\n"))


# Access ------------------------------------------------------------------------------------------


def test_a_private_repo_is_hidden(
    alice: HfApi, reader: HfApi, bob: HfApi, nobody: HfApi, tmp_path: Path
) -> None:
    alice.create_repo(REPO, private=True)
    push(alice)
    assert fetch(reader, "model.safetensors", tmp_path / "reader") == WEIGHTS
    for api, status in ((bob, 404), (nobody, 401)):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            api.model_info(REPO)
        assert hidden.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            fetch(api, "model.safetensors", tmp_path / str(status))


def test_a_gated_repo_shows_itself_and_keeps_its_files(
    hub: HubServer, alice: HfApi, bob: HfApi, nobody: HfApi, tmp_path: Path
) -> None:
    alice.create_repo(REPO)
    push(alice)
    hub.gate(REPO, "carol")
    carol = HfApi(endpoint=hub.endpoint, token=hub.token("carol"))
    for api in (alice, carol):
        assert fetch(api, "README.md", tmp_path / api.whoami()["name"]) == README
    for api, status in ((bob, 403), (nobody, 401)):
        assert api.model_info(REPO).gated == "manual"
        with pytest.raises(GatedRepoError) as refused:
            fetch(api, "README.md", tmp_path / str(status))
        assert refused.value.response.status_code == status
    with pytest.raises(GatedRepoError):
        bob.auth_check(REPO)


def test_only_the_owners_write_token_writes(
    hub: HubServer, alice: HfApi, reader: HfApi, bob: HfApi, nobody: HfApi
) -> None:
    alice.create_repo(REPO)
    alice.auth_check(REPO, write=True)
    reader.auth_check(REPO)
    for api, status in ((reader, 403), (bob, 403), (nobody, 401)):
        for attempt in (
            lambda api=api: api.auth_check(REPO, write=True),
            lambda api=api: push(api),
        ):
            with pytest.raises(HfHubHTTPError) as refused:
                attempt()
            assert refused.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="namespace"):
        bob.create_repo("alice/other")
    assert history(alice) == ["initial commit"]


def test_a_wrong_token_is_401_everywhere(hub: HubServer, alice: HfApi) -> None:
    alice.create_repo(REPO)
    stranger = HfApi(endpoint=hub.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        stranger.whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        stranger.model_info(REPO)
    assert not isinstance(refused.value, RepositoryNotFoundError)


def test_the_storage_opens_only_to_signed_addresses(hub: HubServer, alice: HfApi) -> None:
    alice.create_repo(REPO)
    push(alice)
    path = next(call.path for call in hub.requests if call.method == "PUT")
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(f"{hub.endpoint}{path}?signature=0")
    assert refused.value.code == 403


def test_a_large_file_lies_on_another_origin(hub: HubServer, alice: HfApi) -> None:
    alice.create_repo(REPO)
    oid = push(alice)
    url = f"{hub.endpoint}/{REPO}/resolve/main/model.safetensors"
    reply = httpx2.head(url, trust_env=False)
    assert (reply.status_code, reply.headers["X-Repo-Commit"]) == (302, oid)
    assert reply.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert reply.headers["Location"].startswith("http://localhost:")
    part = httpx2.get(reply.headers["Location"], headers={"Range": "bytes=5-8"}, trust_env=False)
    assert (part.status_code, part.content) == (206, WEIGHTS[5:9])


# Faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 409, 412, 500])
def test_fail_answers_once_and_has_no_effect(hub: HubServer, alice: HfApi, status: int) -> None:
    alice.create_repo(REPO)
    hub.fail("POST", "/commit/main$", status=status)
    with pytest.raises(HfHubHTTPError, match="Injected fault") as failed:
        push(alice)
    assert failed.value.response.status_code == status
    assert history(alice) == ["initial commit"]
    push(alice)
    commits = [call.status for call in hub.requests if call.path.endswith("/commit/main")]
    assert commits == [status, 200]


def test_fail_carries_headers(hub: HubServer, alice: HfApi) -> None:
    alice.create_repo(REPO)
    hub.fail("*", f"/api/models/{REPO}$", status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(GatedRepoError):
        alice.model_info(REPO)


def test_the_client_waits_out_a_rate_limit_and_a_failing_storage(
    hub: HubServer, alice: HfApi
) -> None:
    alice.create_repo(REPO)
    hub.fail("POST", "/preupload/", status=429, headers={"Retry-After": "0"})
    hub.fail("PUT", "^/storage/", status=503)
    push(alice)
    puts = [call.status for call in hub.requests if call.method == "PUT"]
    preuploads = [call.status for call in hub.requests if "/preupload/" in call.path]
    assert (puts, preuploads) == ([503, 200], [429, 200])


@pytest.mark.parametrize(("when", "commits"), [("before", 1), ("after", 2)])
def test_drop_before_and_after_the_commit(
    hub: HubServer, alice: HfApi, when: str, commits: int
) -> None:
    alice.create_repo(REPO)
    hub.drop("POST", "/commit/", when=when)
    with pytest.raises(httpx2.TransportError):
        push(alice)
    assert hub.requests[-1] == ("POST", f"/api/models/{REPO}/commit/main", DROPPED)
    assert len(history(alice)) == commits
    push(alice)  # a second try ends in the same place
    assert len(history(alice)) == 2


def test_a_closed_server_is_gone_for_waiting_connections(tmp_path: Path) -> None:
    with HubServer(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token("alice"))
        api.whoami()
    with pytest.raises(httpx2.TransportError):
        api.whoami()


# Subprocesses ------------------------------------------------------------------------------------

READER_CREATES = """
from huggingface_hub import auth_check, create_repo
from huggingface_hub.errors import HfHubHTTPError

print(create_repo("alice/slim", exist_ok=True).repo_id)
try:
    auth_check("alice/slim", write=True)
except HfHubHTTPError as refused:
    print(refused.response.status_code)
"""


def test_create_repo_misleads_a_reader_and_auth_check_does_not(
    hub: HubServer, alice: HfApi, tmp_path: Path
) -> None:
    alice.create_repo(REPO)
    env = hub.env(tmp_path / "home", hub.token("alice"))
    command = [sys.executable, "-c", READER_CREATES]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [REPO, "403"], done.stderr


def test_timm_loads_from_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.token("alice", write=True)
    use_hub(hub, token, monkeypatch, tmp_path / "home")
    model = timm.create_model("test_vit", num_classes=3).eval()
    timm.models.save_for_hf(model, str(tmp_path / "tiny"), safe_serialization=True)
    publish(hub, "alice/tiny", tmp_path / "tiny", private=True)
    again = timm.create_model("hf-hub:alice/tiny", pretrained=True).eval()
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(model(images), again(images))
    assert token not in repr(hub.requests)
    assert ("GET", "/alice/tiny/resolve/main/model.safetensors") not in {
        call[:2] for call in hub.requests
    }  # the client went straight to the storage
    assert any(call.path.startswith("/storage/models/alice/tiny/") for call in hub.requests)


def test_the_command_prints_what_to_export(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "tests.hub_server", "--root", str(tmp_path)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
    said = dict(line.removeprefix("export ").split("  #")[0].strip().split("=") for line in lines)
    assert said["HF_ENDPOINT"].startswith("http://127.0.0.1:")
    assert said["HF_TOKEN"].startswith("hf_") and said["HF_HUB_DISABLE_XET"] == "1"
