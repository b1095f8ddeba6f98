"""Pushes that meet trouble: the real client, and a Hub that fails on purpose."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.hub_client import REPO, slim_folder, use_hub
from tests.hub_server import HubServer
from timm_linop import cli
from timm_linop.errors import HubError
from timm_linop.hub import check_write_access, push

pytestmark = pytest.mark.filterwarnings("ignore:the model's licence is not known")
AGAIN = [429, 500, 503]  # what the client waits out by itself, except at the commit
MANY = 99
LFS, BATCH, PREUPLOAD, COMMIT = "^/storage/", "/info/lfs/objects/batch$", "/preupload/", "/commit/"


@pytest.fixture
def api(token: str) -> HfApi:
    return HfApi()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that anything in this process would have waited."""
    asked: list[float] = []
    doze = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (asked.append(seconds), doze(0.01))[1])
    return asked


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slim_folder(tmp_path_factory.mktemp("faults") / "slim")


def commits(api: HfApi, revision: str | None = None) -> int:
    return len(api.list_repo_commits(REPO, revision=revision))


def told(folder: Path, secret: str, **settings: Any) -> str:
    """The sentence of a push that fails, after a look for the token in all that comes with it."""
    with pytest.raises(HubError) as failed:
        push(folder, REPO, **settings)
    error = failed.value
    assert error.__cause__ is None and error.__context__ is None
    held = pickle.dumps(error) + "".join(traceback.format_exception(error)).encode()
    assert secret.encode() not in held + repr(vars(error)).encode()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return str(error)


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("at", [PREUPLOAD, COMMIT, "/repos/create$"])
def test_a_refusal_is_told_at_once(
    status: int, at: str, hub: HubServer, api: HfApi, token: str, folder: Path
) -> None:
    hub.fail("POST", at, status=status)
    said = told(folder, token)
    assert f"answered {status}" in said and "pushing" in said and hub.endpoint in said
    push(folder, REPO)
    push(folder, REPO)
    assert commits(api) == 2


def test_whose_token_it_must_be(
    hub: HubServer, api: HfApi, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.create_repo(REPO)
    cases = {
        hub.token("alice"): "may not write there",
        hub.token("bob", write=True): "may not write there",
        "hf_wrongwrongwrong": "log in again",
    }
    for token, message in cases.items():
        use_hub(hub, token, monkeypatch, tmp_path / "home")
        assert message in told(folder, token)
        assert message in told(folder, token, token=token)
        with pytest.raises(HubError, match=message) as failed:
            check_write_access(REPO)
        assert failed.value.__context__ is None and token not in str(failed.value)
    use_hub(hub, None, monkeypatch, tmp_path / "home")
    with pytest.raises(HubError, match="log in"):
        push(folder, REPO)
    assert commits(api) == 1


def test_of_eight_racing_pushes_all_get_in(
    api: HfApi, hub: HubServer, tmp_path: Path, slept: list[float]
) -> None:
    """Each of another model; whoever comes too late reads the head again."""
    api.create_repo(REPO)
    folders = [
        slim_folder(tmp_path / f"slim{number}", **{f"own{number}": b"\x89PNG"})
        for number in range(8)
    ]
    start = threading.Barrier(8)

    def race(folder: Path) -> str:
        start.wait()
        return push(folder, REPO).oid

    with ThreadPoolExecutor(8) as pool:
        oids = set(pool.map(race, folders))
    assert len(oids) == 8 and commits(api) == 9
    statuses = [call.status for call in hub.requests if COMMIT in call.path]
    assert set(statuses) <= {200, 412} and statuses.count(200) == 8
    figures = [name for name in api.list_repo_files(REPO) if name.startswith("figures/")]
    assert len(figures) == 1  # the last one's


def test_a_race_that_is_never_won_is_told(
    hub: HubServer, api: HfApi, token: str, folder: Path, slept: list[float]
) -> None:
    for status, message in ((412, "others keep pushing"), (409, "someone else is writing")):
        hub.fail("POST", COMMIT, status=status, times=8)
        assert message in told(folder, token)
        assert len([call for call in hub.requests if call[2] == status and COMMIT in call[1]]) == 8
    assert commits(api) == 1


@pytest.mark.parametrize("status", AGAIN)
@pytest.mark.parametrize(
    ("method", "at"), [("POST", PREUPLOAD), ("POST", BATCH), ("PUT", LFS), ("POST", COMMIT)]
)
def test_a_short_trouble_is_waited_out(
    status: int,
    method: str,
    at: str,
    hub: HubServer,
    api: HfApi,
    folder: Path,
    slept: list[float],
) -> None:
    hub.fail(method, at, status=status, headers={"Retry-After": "7"}, times=2)
    push(folder, REPO)
    assert commits(api) == 2
    assert [call.status for call in hub.requests if call.status == status] == [status] * 2
    if status == 429:
        assert sum(seconds >= 7 for seconds in slept) == 2


@pytest.mark.parametrize("status", AGAIN)
@pytest.mark.parametrize(("method", "at"), [("POST", PREUPLOAD), ("PUT", LFS), ("POST", COMMIT)])
def test_a_lasting_trouble_is_told(
    status: int,
    method: str,
    at: str,
    hub: HubServer,
    api: HfApi,
    token: str,
    folder: Path,
    slept: list[float],
) -> None:
    hub.fail(method, at, status=status, headers={"Retry-After": "3"}, times=MANY)
    said = told(folder, token)
    assert f"answered {status}" in said
    assert ("wait 3 seconds" if status == 429 else "trouble of its own") in said
    assert commits(api) == 1


def test_a_rate_limit_of_minutes_is_told_instead(
    hub: HubServer, token: str, folder: Path, slept: list[float]
) -> None:
    hub.fail("POST", COMMIT, status=429, headers={"Retry-After": "300"})
    assert "wait 300 seconds" in told(folder, token)
    assert not [seconds for seconds in slept if seconds > 60]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("create_pr", [False, True])
def test_a_lost_reply_makes_no_second_commit(
    when: str,
    create_pr: bool,
    hub: HubServer,
    api: HfApi,
    folder: Path,
    slept: list[float],
) -> None:
    api.create_repo(REPO)
    hub.drop("POST", COMMIT, when=when)
    done = push(folder, REPO, create_pr=create_pr)
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert commits(api) == (1 if create_pr else 2)
    if create_pr:
        assert [ref.ref for ref in refs.pull_requests or []] == ["refs/pr/1"]
        assert (done.pr_revision, done.pr_url) == (
            "refs/pr/1",
            f"{hub.endpoint}/{REPO}/discussions/1",
        )
        assert refs.pull_requests and done.oid == refs.pull_requests[0].target_commit
    else:
        assert done.oid == api.model_info(REPO).sha
        assert push(folder, REPO).oid == done.oid


@pytest.mark.parametrize(
    ("method", "at"), [("GET", f"/api/models/{REPO}"), ("POST", COMMIT), ("POST", "/repos/create$")]
)
def test_a_connection_that_keeps_dropping_is_told(
    method: str,
    at: str,
    hub: HubServer,
    token: str,
    folder: Path,
    slept: list[float],
) -> None:
    hub.drop(method, at, times=MANY)
    assert "cannot be reached" in told(folder, token)


def test_no_hub_at_all_is_told(
    token: str, folder: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in told(folder, token)


def test_the_token_is_in_no_log_at_any_verbosity(
    hub: HubServer,
    token: str,
    folder: Path,
    slept: list[float],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_DEBUG", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "httpx2", "httpcore2", "timm", "timm_linop"):
        caplog.set_level(logging.DEBUG, name)
    hub.fail("POST", PREUPLOAD, status=503)
    hub.fail("POST", COMMIT, status=401)
    with pytest.raises(SystemExit) as left:
        cli.main(["push", str(folder), REPO])
    assert left.value.code == 2
    cli.main(["push", str(folder), REPO, "--tag", "v1"])
    printed = capfd.readouterr()
    assert caplog.records and "answered 401" in printed.err
    assert token not in caplog.text + printed.out + printed.err
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]


def test_the_clients_own_exception_would_have_told_it(api: HfApi, token: str) -> None:
    """Why none of them is passed on, chained or not."""
    with pytest.raises(HfHubHTTPError) as failed:
        api.model_info("alice/nothing")
    assert token in failed.value.response.request.headers["Authorization"]


def test_what_is_pushed_holds_no_token(api: HfApi, token: str, folder: Path) -> None:
    push(folder, REPO, token=token)
    for name in api.list_repo_files(REPO):
        assert token.encode() not in Path(api.hf_hub_download(REPO, name)).read_bytes()
    config = json.loads(Path(api.hf_hub_download(REPO, "config.json")).read_text())
    assert config["architecture"] == "linop_test_resnet"
