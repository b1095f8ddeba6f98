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
from tests.hub_client import REPO, use_hub
from tests.hub_server import HubServer
from timm_linop import cli
from timm_linop.errors import ExpansionError, OutputFolderError
from timm_linop.hub import save

ROOT = Path(__file__).parents[1]


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
    model: torch.nn.Module,
    folder: Path,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = hub.token("alice", write=True)
    push = f"timm_linop.push({str(folder)!r}, {REPO!r})"
    done = python(hub, tmp_path / "home", token, f"import timm_linop\n{push}\n{push}")
    assert done.returncode == 0, done.stderr
    assert token not in done.stdout + done.stderr
    api = HfApi(endpoint=hub.endpoint, token=token)
    # The repo's first, and ours: pushing the same again changes nothing.
    assert len(api.list_repo_commits(REPO)) == 2

    use_hub(hub, None, monkeypatch, tmp_path / "stranger")
    x = torch.randn(2, 3, 64, 64)
    slim = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    assert torch.equal(slim(x), model(x))
    assert slim.pretrained_cfg["label_names"] == ["a", "b", "c"]
    wide = timm.create_model("linop_test_resnet", pruned=f"hf-hub:{REPO}", rate=2).eval()
    assert timm_linop.audit(wide)
    assert (wide(x) - slim(x)).norm() / slim(x).norm() < 1e-5


@pytest.mark.parametrize(
    ("owner", "write", "message"),
    [
        (None, False, "no token found"),
        ("alice", False, "may not write there"),
        ("bob", True, "may not write there"),
    ],
)
def test_no_access_is_told_before_training(
    owner: str | None,
    write: bool,
    message: str,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    HfApi(endpoint=hub.endpoint, token=hub.token("alice", write=True)).create_repo(REPO)
    token = hub.token(owner, write=write) if owner else None
    use_hub(hub, token, monkeypatch, tmp_path / "home")
    argv = ["--model", "test_resnet", "--push-to-hub", REPO, "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.train(argv)
    printed = "".join(capsys.readouterr())
    assert message in printed and "Traceback" not in printed
    assert not token or token not in printed
    assert not (tmp_path / "out").exists()


def test_training_ends_with_a_push(
    token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--model", "test_resnet", "--in-chans", "1", "--img-size", "32", "--epochs", "1"]
    cli.train([*flags, "--no-aug", "--push-to-hub", REPO, "--output", str(out)])
    files = HfApi().list_repo_files(REPO)
    assert {"config.json", "model.safetensors", "README.md", "figures/training.png"} <= set(files)
    written = (path for path in out.rglob("*") if path.is_file())
    assert not [path for path in written if token.encode() in path.read_bytes()]
    assert token not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("token")
def test_what_push_refuses(
    model: torch.nn.Module, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = timm_linop.expand(copy.deepcopy(model), rate=1)
    save_for_hf(wide, str(tmp_path / "wide"), model_args={"pruned": None}, safe_serialization=True)
    plain = timm.create_model("test_resnet")
    save_for_hf(plain, str(tmp_path / "plain"), safe_serialization=True)
    (tmp_path / "empty").mkdir()
    for name, message in {
        "wide": "holds an expanded model and is not pushed",
        "plain": "holds no slim model of timm_linop",
        "empty": "holds no slim model",
        "missing": "holds no slim model",
    }.items():
        with pytest.raises(SystemExit, match=r"^2$"):
            cli.main(["push", str(tmp_path / name), REPO])
        assert message in capsys.readouterr().err
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
