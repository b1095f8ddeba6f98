"""Faults on the way from the Hub and to the disk: told in a sentence, and nothing is half done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants, hf_hub_download

import timm_linop
from tests.disk import full_disk
from tests.hub_client import cached, publish, use_hub
from tests.hub_server import HubServer
from tests.slims import images, slim, twin
from timm_linop.drafts import draft_of
from timm_linop.errors import CheckpointError, HubError, OutputFolderError, WriteError

NAME, REPO = "test_resnet", "alice/slim"
ROOT = Path(__file__).parents[1]
DOORS: dict[str, Callable[[], Any]] = {
    "load": lambda: timm_linop.load(REPO).model,
    "timm": lambda: timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval(),
    "pruned": lambda: twin(NAME, f"hf-hub:{REPO}"),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    folder = timm_linop.save(slim(NAME), root / "slim", class_names=list("abcde"))
    with HubServer(root / "hub") as server:
        publish(server, REPO, folder)
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def hub(published: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    use_hub(published, None, monkeypatch, home)
    # The client waits 1 s, 2 s, ... between its own attempts.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield published
    published.calm()


def is_right(model: torch.nn.Module) -> bool:
    return torch.equal(model(images(NAME)), slim(NAME)(images(NAME)))


# Downloads ---------------------------------------------------------------------------------------


def test_a_download_that_is_cut_short_goes_on(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what arrives is kept by chunks
    hub.drop("GET", "^/storage/", when="midway")
    assert is_right(DOORS["load"]())
    assert [call.status for call in hub.requests if "/storage/" in call.path][-2:] == [200, 206]


@pytest.mark.parametrize("door", ["load", "pruned"])
def test_a_download_that_never_ends_is_told_and_leaves_no_file(
    door: str, hub: HubServer, home: Path
) -> None:
    hub.drop("GET", "^/storage/", when="midway", times=100)
    with pytest.raises(HubError, match=r"download of model\.safetensors broke off .* try again"):
        DOORS[door]()
    assert not list((home / "hub").glob("models--*/snapshots/*/model.safetensors"))
    hub.calm()
    assert is_right(DOORS[door]())


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_error_of_the_server_that_passes(status: int, hub: HubServer) -> None:
    hub.fail("HEAD", "/resolve/", status=status, headers={"Retry-After": "0"})
    assert is_right(DOORS["load"]())


def test_an_error_of_the_server_that_stays(hub: HubServer) -> None:
    for door in ("load", "pruned"):
        hub.fail("HEAD", "/resolve/.*/model.safetensors", status=503, times=100)
        with pytest.raises(HubError, match=r"Hub answers 503 for model\.safetensors; try again"):
            DOORS[door]()
        hub.calm()
    assert is_right(DOORS["load"]())
    hub.fail("*", "", status=503, times=1000)  # what is in the cache does for as long
    for build in DOORS.values():
        assert is_right(build())


def test_a_connection_that_drops_at_once(hub: HubServer) -> None:
    hub.drop("HEAD", "/resolve/")
    with pytest.raises(HubError, match=r"broke off \(RemoteProtocolError\); check the network"):
        DOORS["load"]()
    assert is_right(DOORS["load"]())


# What lies in the cache --------------------------------------------------------------------------


def flip_a_weight(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 0x40])


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a weight": ("model.safetensors", flip_a_weight),
    "cut": ("model.safetensors", lambda content: content[: len(content) // 2]),
    "the header": ("model.safetensors", lambda content: b"\xff" * 16 + content[16:]),
    "empty": ("model.safetensors", lambda content: b""),
    "config": ("config.json", lambda content: content.replace(b'"rate": 0', b'"rate": 3')),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_in_the_cache_is_named_and_comes_again(
    kind: str, door: str, hub: HubServer, home: Path
) -> None:
    assert is_right(DOORS[door]())
    name, damage = DAMAGE[kind]
    path = cached(home, name)
    whole = path.read_bytes()
    for heal in (
        lambda: path.resolve().unlink(),
        lambda: hf_hub_download(REPO, name, revision=path.parent.name, force_download=True),
    ):
        assert damage(whole) != whole
        path.write_bytes(damage(whole))
        with pytest.raises(CheckpointError) as refused:
            DOORS[door]()
        told = str(refused.value)
        assert told.startswith(f"{path} is damaged")
        assert f"hf download {REPO} {name} --revision {path.parent.name} --force-download" in told
        assert str(path.resolve()) in told
        heal()
        assert is_right(DOORS[door]())
        assert path.read_bytes() == whole


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = timm_linop.save(slim(NAME), tmp_path / "slim")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for build in (
        lambda: timm_linop.load(folder),
        lambda: timm.create_model(f"local-dir:{folder}", pretrained=True),
        lambda: twin(NAME, folder),
    ):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is no readable state dict"):
            build()


# The disk ----------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, traceback
from pathlib import Path
import timm, timm_linop, timm.models._hub as timms, torch
from timm_linop.errors import LinOPError

root = Path(sys.argv[1])
torch.set_num_threads(1)
models = {n: timm.create_model("test_resnet", num_classes=n) for n in (2, 3)}

def child(work):
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        work()
    except LinOPError as error:
        print(type(error).__name__, error, flush=True)
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)

def codes(*pids):
    print(*sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids), flush=True)

def look():
    print(*sorted(path.name for path in root.iterdir()), flush=True)
"""

KILLED = """
def killed_midway():
    timms.save_config_for_hf = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
    timm_linop.save(models[3], root / "slim")

(root / ".slim-notes").mkdir()  # of the user
(root / "slim").mkdir()
codes(child(killed_midway))
look()
print(list((root / "slim").iterdir()))
timm_linop.save(models[2], root / "slim")
look()
codes(child(killed_midway))  # into a folder that is full: refused
print(timm_linop.load(root / "slim").model.num_classes)

# Two at once: both are within save() before either may end.
read, write = os.pipe()
def together(n):
    own = timms.save_config_for_hf
    def slowly(*args, **kwargs):
        os.write(write, b"x")
        os.read(both[n], 1)
        own(*args, **kwargs)
    timms.save_config_for_hf = slowly
    timm_linop.save(models[n], root / "shared")

gates = {n: os.pipe() for n in models}
both = {n: gate[0] for n, gate in gates.items()}
pids = [child(lambda n=n: together(n)) for n in models]
[os.read(read, 1) for _ in pids]
[os.write(gate[1], b"x") for gate in gates.values()]
codes(*pids)
look()
config = timm_linop.checkpoint.read_config(root / "shared" / "config.json")
print(timm_linop.load(root / "shared").model.num_classes == config["num_classes"])
"""


def run(program: str, hub: HubServer, tmp_path: Path) -> list[str]:
    (tmp_path / "disk").mkdir()
    command = [sys.executable, "-c", PROGRAM + program, str(tmp_path / "disk")]
    env = hub.env(tmp_path / "other")
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_full_disk(hub: HubServer, home: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    timm_linop.save(slim(NAME), disk / "old")
    with full_disk(2000), pytest.raises(WriteError, match=r"slim cannot be written .*make room"):
        timm_linop.save(slim(NAME), disk / "slim")
    assert [path.name for path in disk.iterdir()] == ["old"]  # no draft is left
    full = r"cannot be written into the cache \(File too large\); make room there"
    with full_disk(2000), pytest.raises(HubError, match=f"hf-hub:{REPO} cannot be read: .*{full}"):
        timm_linop.load(f"hf-hub:{REPO}")
    assert not list((home / "hub").glob("models--*/snapshots/*/model.safetensors"))
    assert is_right(timm_linop.load(disk / "old").model)
    assert timm_linop.load(REPO).class_names == tuple("abcde")


def test_a_save_that_is_killed_and_two_at_once(hub: HubServer, tmp_path: Path) -> None:
    said = run(KILLED, hub, tmp_path)
    assert said[0] == "-9"
    leftover, notes, slim_name = said[1].split()
    assert leftover.startswith(".slim") and notes.startswith(".slim") and slim_name == "slim"
    assert said[2:4] == ["[]", ".slim-notes slim"]  # the next save has cleaned up
    assert "holds something already" in said[4] and said[5:7] == ["2", "2"]
    assert said[7].startswith("OutputFolderError") and "by another process meanwhile" in said[7]
    assert said[8:] == ["0 2", ".slim-notes shared slim", "True"]


def test_a_draft_in_use_is_no_leftover(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with draft_of(folder) as first:
        (first / "a").write_text("first")
        with pytest.raises(OutputFolderError, match="by another process"), draft_of(folder) as late:
            (late / "a").write_text("late")
            (first / "b").write_text("still there")
            first.rename(folder)  # as the end of the first one does
        folder.rename(first)
    assert {path.name for path in folder.iterdir()} == {"a", "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_many_drafts_one_wins(tmp_path: Path) -> None:
    def write(number: int) -> bool:
        try:
            with draft_of(tmp_path / "out") as draft:
                (draft / "a").write_text(str(number))
                (draft / "b").write_text(str(number))
        except OutputFolderError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(32)))
    assert won.count(True) == 1
    told = [(tmp_path / "out" / name).read_text() for name in ("a", "b")]
    assert told == [str(won.index(True))] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
