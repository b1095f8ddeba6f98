"""Saving and pushing, with the real client over HTTP against the tests' own Hub."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from timm.models import save_for_hf

import timm_linop
from tests.hub_server import HubServer
from timm_linop.errors import ExpansionError, OutputFolderError
from timm_linop.hub import save

ROOT = Path(__file__).parents[1]
REPO = "alice/slim"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    dense = timm.create_model("test_resnet", num_classes=3)
    return timm_linop.prune(dense, torch.randn(1, 3, 64, 64), ratio=0.5).eval()


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    figure = tmp_path / "widths.png"
    figure.write_bytes(b"\x89PNG")
    return save(model, tmp_path / "slim", class_names=["a", "b", "c"], figures=[figure])


def python(hub: HubServer, home: Path, token: str | None, code: str) -> subprocess.CompletedProcess:
    """Run a program of a user's, whose HF_ENDPOINT is the tests' Hub."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=hub.env(home, token),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_a_saved_folder_is_timms_own_layout(model: torch.nn.Module, folder: Path) -> None:
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert names == ["README.md", "config.json", "figures/widths.png", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "linop_test_resnet"
    assert config["label_names"] == ["a", "b", "c"]
    assert config["model_args"]["rate"] == 0
    assert config["model_args"]["pruned"]["base"] == "test_resnet"
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "timm"
    x = torch.randn(2, 3, 64, 64)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]


def test_channels_last_and_half_precision_are_saved(model: torch.nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    folder = save(other, tmp_path / "last")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert other.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_model_of_a_run_in_mixed_precision_reloads(tmp_path: Path) -> None:
    """Under accelerate it answers in half precision; what is stored of it must not."""
    trained = timm.create_model("test_resnet", num_classes=3)
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16").prepare(trained)
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = save(trained, tmp_path / "slim")
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3
    assert "_original_forward" in vars(trained)  # which stays as it was


def test_what_save_refuses(model: torch.nn.Module, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExpansionError, match=r"contract\(model\) first"):
        save(timm_linop.expand(copy.deepcopy(model)), tmp_path / "wide")
    assert not (tmp_path / "wide").exists()
    before = (folder / "config.json").read_bytes()
    with pytest.raises(OutputFolderError, match="holds something already"):
        save(model, folder)
    assert (folder / "config.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slim", "widths.png"]


def test_push_is_one_commit_and_anyone_reloads_it(
    model: torch.nn.Module, folder: Path, hub: HubServer, tmp_path: Path
) -> None:
    token = hub.token("alice", write=True)
    push = f"import timm_linop; timm_linop.push({str(folder)!r}, {REPO!r})"
    done = python(hub, tmp_path / "home", token, push)
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    api = HfApi(endpoint=hub.endpoint, token=token)
    commits = api.list_repo_commits(REPO)
    assert len(commits) == 2  # the repo's first, and ours

    assert python(hub, tmp_path / "home", token, push).returncode == 0
    assert len(api.list_repo_commits(REPO)) == 2  # pushing the same again changes nothing

    torch.manual_seed(1)
    x = torch.randn(2, 3, 64, 64)
    torch.save(x, tmp_path / "x.pt")
    reload = (
        "import timm, timm_linop, torch\n"
        "torch.set_num_threads(1)\n"  # as here: bits depend on it
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        f"slim = timm.create_model('hf-hub:{REPO}', pretrained=True).eval()\n"
        f"wide = timm.create_model('linop_test_resnet', pruned='hf-hub:{REPO}', rate=2).eval()\n"
        f"torch.save([slim(x), wide(x)], {str(tmp_path / 'y.pt')!r})\n"
        "print(len(timm_linop.audit(wide)), slim.pretrained_cfg['label_names'])"
    )
    done = python(hub, tmp_path / "stranger", None, reload)
    assert done.returncode == 0, done.stderr
    slim, wide = torch.load(tmp_path / "y.pt")
    assert torch.equal(slim, model(x))
    assert (wide - slim).norm() / slim.norm() < 1e-5
    assert "['a', 'b', 'c']" in done.stdout


def test_push_removes_our_stale_files_and_keeps_foreign_ones(
    folder: Path, hub: HubServer, tmp_path: Path
) -> None:
    token = hub.token("alice", write=True)
    api = HfApi(endpoint=hub.endpoint, token=token)
    api.create_repo(REPO)
    for name in ("figures/old.png", "notes.txt", "demo/figure.png"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id=REPO)
    code = f"import timm_linop; timm_linop.push({str(folder)!r}, {REPO!r}, message='Ours')"
    assert python(hub, tmp_path / "home", token, code).returncode == 0
    files = set(api.list_repo_files(REPO))
    assert {"notes.txt", "demo/figure.png", "figures/widths.png", "config.json"} <= files
    assert "figures/old.png" not in files
    assert api.list_repo_commits(REPO)[0].title == "Ours"


@pytest.mark.parametrize(
    ("owner", "write", "message"),
    [
        (None, False, "no token found"),
        ("alice", False, "may not write there"),
        ("bob", True, "may not write there"),
    ],
)
def test_no_access_is_told_before_training(
    owner: str | None, write: bool, message: str, hub: HubServer, tmp_path: Path
) -> None:
    HfApi(endpoint=hub.endpoint, token=hub.token("alice", write=True)).create_repo(REPO)
    token = hub.token(owner, write=write) if owner else None
    argv = ["--model", "test_resnet", "--push-to-hub", REPO, "--output", str(tmp_path / "out")]
    code = f"from timm_linop import cli; cli.train({argv!r})"
    done = python(hub, tmp_path / "home", token, code)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not token or token not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_training_ends_with_a_push(hub: HubServer, tmp_path: Path) -> None:
    token = hub.token("alice", write=True)
    argv = [
        "--model",
        "test_resnet",
        "--in-chans",
        "1",
        "--img-size",
        "32",
        "--epochs",
        "1",
        "--no-aug",
        "--push-to-hub",
    ]
    argv += [REPO, "--output", str(tmp_path / "out")]
    code = f"from timm_linop import cli; cli.train({argv!r})"
    done = python(hub, tmp_path / "home", token, code)
    assert done.returncode == 0, done.stderr
    files = HfApi(endpoint=hub.endpoint, token=token).list_repo_files(REPO)
    assert {"config.json", "model.safetensors", "README.md", "figures/training.png"} <= set(files)
    written = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [path for path in written if token.encode() in path.read_bytes()]


def test_what_push_refuses(model: torch.nn.Module, hub: HubServer, tmp_path: Path) -> None:
    wide = timm_linop.expand(copy.deepcopy(model), rate=1)
    save_for_hf(wide, str(tmp_path / "wide"), model_args={"pruned": None}, safe_serialization=True)
    plain = timm.create_model("test_resnet")
    save_for_hf(plain, str(tmp_path / "plain"), safe_serialization=True)
    (tmp_path / "empty").mkdir()
    token = hub.token("alice", write=True)
    for name, message in {
        "wide": "holds an expanded model and is not pushed",
        "plain": "holds no slim model of timm_linop",
        "empty": "holds no slim model",
        "missing": "holds no slim model",
    }.items():
        argv = ["push", str(tmp_path / name), REPO]
        code = f"from timm_linop import cli; cli.main({argv!r})"
        done = python(hub, tmp_path / "home", token, code)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not [request for request in hub.requests if request[0] == "POST"]


def test_a_module_that_stands_in_two_places(tmp_path: Path) -> None:
    """Its tensors have two names; safetensors refuses a file in which two names are one tensor."""
    torch.manual_seed(0)
    model = timm.create_model("coat_lite_tiny", num_classes=3).eval()
    folder = timm_linop.save(model, tmp_path / "slim")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(again(x), model(x))


def test_what_an_attention_has_cached_is_no_part_of_it(tmp_path: Path) -> None:
    model = timm.create_model("levit_128s", num_classes=3).eval()
    model(torch.randn(1, 3, 224, 224))  # with gradients: the cached biases cannot be copied
    folder = timm_linop.save(model, tmp_path / "slim")
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3
