"""Every arm of the paper through the real commands, on digits; and what they refuse."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from timm.data import create_transform, resolve_input_data_config
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

import timm_linop  # noqa: F401
from timm_linop import cli
from timm_linop.data import Augmentation, load_data, make_loader, make_transforms
from timm_linop.flags import parse
from timm_linop.recipe import Recipe

ROOT = Path(__file__).parents[1]
QUICK = ["--dataset", "digits", "--img-size", "32", "--epochs", "1", "--no-aug"]
QUICK += ["--batch-size", "100", "--crop-pct", "1.0", "--lr", "0.01"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "dense"
    cli.train(["--model", "test_resnet", "--in-chans", "1", *QUICK, "--output", str(folder)])
    return folder


@pytest.fixture(scope="module")
def pruned(dense: Path) -> Path:
    folder = dense.parent / "pruned"
    argv = ["--weights", str(dense), "--ratio", "0.5", "--img-size", "32", "--crop-pct", "1.0"]
    cli.prune([*argv, "--output", str(folder)])
    return folder


def accuracy_of(folder: Path) -> float:
    """What a stranger measures: timm alone, one image set, no code of the run."""
    model = timm.create_model(f"local-dir:{folder}/slim", pretrained=True).eval()
    transform = create_transform(**resolve_input_data_config(model))
    batches = make_loader(load_data("digits").test, transform, 50, shuffle=False)
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).double() for x, y in batches]
    return 100 * torch.cat(right).mean().item()


ARMS = {
    "vanilla": ["--rate", "0", "--gamma", "0"],
    "distilled": ["--rate", "0", "--gamma", "3000", "--teacher", "DENSE"],
    "expanded": ["--gamma", "0"],
    "linop": ["--gamma", "3000", "--teacher", "DENSE"],
    "expanded, KD": ["--teacher", "DENSE"],
    "scratch": ["--reinit", "--rate", "0", "--gamma", "0"],
    "scratch, distilled": ["--reinit", "--rate", "0", "--gamma", "1", "--teacher", "DENSE"],
    "expandnets": ["--reinit", "--gamma", "0", "--init", "normal"],
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_leaves_a_run_that_timm_reloads(
    arm: str, dense: Path, pruned: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = [flag.replace("DENSE", f"local-dir:{dense}") for flag in ARMS[arm]]
    cli.train(["--pruned", str(pruned), *QUICK, *flags, "--output", str(output)])

    rows = {row["arm"]: row for row in json.loads((output / "results.json").read_text())}
    assert rows[arm]["accuracy"] == pytest.approx(accuracy_of(output), abs=1e-4)
    slim = timm.create_model(f"local-dir:{output}/slim", pretrained=True)
    start = timm.create_model(f"local-dir:{pruned}/slim", pretrained=True)
    shapes = {name: tensor.shape for name, tensor in slim.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in start.state_dict().items()}
    assert rows[arm]["parameters"] == sum(p.numel() for p in start.parameters())
    assert not torch.equal(slim.fc.weight, start.fc.weight)

    metrics = list(csv.DictReader((output / "metrics.csv").open()))
    assert [row["epoch"] for row in metrics] == ["1"]
    with_teacher = "--teacher" in flags
    loss = "sp_loss" if "--gamma" in flags else "kd_loss"
    assert (float(metrics[0][loss]) > 0) == with_teacher
    assert ("dense" in rows) == with_teacher
    assert ("pruned" in rows) == ("--reinit" not in flags)
    again = parse(Recipe, ["--config", str(output / "recipe.yaml")], "train.py")
    assert again == again.effective()
    assert again.model.pruned == str(pruned)
    assert "import timm, timm_linop" in (output / "slim" / "README.md").read_text()
    assert (output / "slim" / "figures" / "training.png").is_file()


def test_reinit_forgets_the_weights(pruned: Path, tmp_path: Path) -> None:
    argv = ["--pruned", str(pruned), *QUICK, "--rate", "0", "--gamma", "0"]
    cli.train([*argv, "--lr", "1e-9", "--output", str(tmp_path / "kept")])
    cli.train([*argv, "--lr", "1e-9", "--reinit", "--output", str(tmp_path / "new")])
    weights = {
        name: timm.create_model(f"local-dir:{folder}/slim", pretrained=True).fc.weight
        for name, folder in {
            "start": pruned,
            "kept": tmp_path / "kept",
            "new": tmp_path / "new",
        }.items()
    }
    assert torch.allclose(weights["kept"], weights["start"], atol=1e-6)
    assert not torch.allclose(weights["new"], weights["start"], atol=1e-2)


def test_vanilla_fine_tuning_is_plain_sgd(pruned: Path, tmp_path: Path) -> None:
    """The whole loop against one written here: same batches, same parameters after an epoch."""
    flags = ["--rate", "0", "--gamma", "0", "--sched", "constant", "--weight-decay", "0.001"]
    cli.train(["--pruned", str(pruned), *QUICK, *flags, "--output", str(tmp_path / "run")])

    model = timm.create_model(f"local-dir:{pruned}/slim", pretrained=True).train()
    config = {**resolve_input_data_config(model), "crop_pct": 1.0}
    transform, _ = make_transforms(config, augment=Augmentation(no_aug=True))
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    loader = make_loader(load_data("digits").train, transform, 100, shuffle=True, seed=42)
    optimizer = create_optimizer_v2(model, "sgd", lr=0.01, weight_decay=0.001, momentum=0.9)
    for images, labels in accelerator.prepare(loader):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = timm.create_model(f"local-dir:{tmp_path}/run/slim", pretrained=True)
    for (name, expected), got in zip(model.named_parameters(), trained.parameters(), strict=True):
        assert torch.allclose(expected, got, rtol=1e-4, atol=1e-6), name


def test_options_of_timm_reach_the_run(pruned: Path, tmp_path: Path) -> None:
    flags = (
        "--gamma 0 --rate 2 --opt adamw --lr 1e-3 --sched multistep --decay-milestones 1 --mixup"
    )
    flags += " 0.2 --smoothing 0.1 --model-ema --clip-grad 1 --exclude fc --reprob 0.2"
    config = tmp_path / "settings.yaml"
    config.write_text("batch_size: 50\nepochs: 7\n")
    argv = ["--pruned", str(pruned), *QUICK, "--config", str(config), *flags.split()]
    argv = [a for a in argv if a not in ("--batch-size", "100")]
    cli.train([*argv, "--epochs", "2", "--output", str(tmp_path / "run")])
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [float(row["lr"]) for row in rows] == [
        1e-3,
        1e-4,
    ]  # the flag's two epochs, one milestone
    assert "batch_size: 50" in (tmp_path / "run" / "recipe.yaml").read_text()


REFUSED = {
    "unknown model": (
        ["--model", "resnet5O"],
        "UnknownModelError: 'resnet5O'.*Close names.*resnet50",
    ),
    "no model": ([], "RecipeError: no model: pass --pruned"),
    "negative rate": (["--model", "test_resnet", "--lr", "-1"], "RecipeError: lr=-1: it must be"),
    "words for numbers": (
        ["--model", "test_resnet", "--decay-milestones", "5,x"],
        r"key .decay_milestones. cannot be \['5', 'x'\]",
    ),
    "missing folder": (
        ["--pruned", "no/such", "--gamma", "0"],
        "CheckpointError: no/such does not exist; check the path",
    ),
    "teacher missing": (["--pruned", "PRUNED"], "RecipeError: kd_weight=1 needs a teacher"),
    "rate below 1": (["--pruned", "PRUNED", "--gamma", "0", "--rate", "0.5"], "rate=0.5"),
    "unknown init": (["--pruned", "PRUNED", "--gamma", "0", "--init", "zeros"], "init='zeros'"),
    "unknown layer": (
        ["--pruned", "PRUNED", "--gamma", "0", "--exclude", "fcc"],
        "Close names: 'fc'",
    ),
    "unknown optimiser": (["--model", "test_resnet", "--opt", "sdg"], "opt='sdg'"),
    "unknown schedule": (["--model", "test_resnet", "--sched", "cosin"], "Close names: 'cosine'"),
    "unknown flag": (["--model", "test_resnet", "--epoch", "3"], "RecipeError.*--epoch"),
    "no number": (["--model", "test_resnet", "--lr", "fast"], "RecipeError.*lr.*float"),
    "another architecture": (
        ["--pruned", "PRUNED", "--model", "test_vit", "--gamma", "0"],
        "StructureError: the pruned model is a test_resnet, not a test_vit",
    ),
    "teacher of another kind": (
        ["--pruned", "PRUNED", "--in-chans", "3", "--teacher", "test_vit"],
        "CheckpointError: test_vit cannot be loaded|UnknownLayerError",
    ),
    "teacher's folder missing": (
        ["--pruned", "PRUNED", "--teacher", "local-dir:no/such"],
        "CheckpointError: teacher='local-dir:no/such': there is no folder no/such",
    ),
    "teacher by a path of another system": (
        ["--pruned", "PRUNED", "--teacher", "runs\\dense"],
        "CheckpointError: teacher='runs.*dense': there is no folder",
    ),
    "teacher under a home that is not there": (
        ["--pruned", "PRUNED", "--teacher", "local-dir:~/no/such"],
        "CheckpointError: teacher='local-dir:~/no/such': there is no folder /",
    ),
    "teacher of no name": (
        ["--pruned", "PRUNED", "--teacher", "test_resnet5"],
        "UnknownModelError: teacher='test_resnet5': there is no such folder.*'test_resnet'",
    ),
    "missing images": (["--model", "test_resnet", "--dataset", "imagefolder:no/such"], "DataError"),
    "folder in use": (
        ["--model", "test_resnet", "--output", "PRUNED"],
        "OutputFolderError: .* holds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(
    case: str,
    pruned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    flags, message = REFUSED[case]
    before = sorted(pruned.rglob("*"))
    output = [] if "--output" in flags else ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.train([flag.replace("PRUNED", str(pruned)) for flag in flags] + output)
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.search(message, told), told
    assert "Traceback" not in told
    assert len([line for line in told.splitlines() if "Error:" in line]) == 1
    assert not (tmp_path / "out").exists()
    assert sorted(pruned.rglob("*")) == before


def test_doubts_are_said_and_the_run_goes_on(
    pruned: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(pruned.parent))  # which the shell leaves to us after a colon
    itself = ["--pruned", str(pruned), "--teacher", f"local-dir:~/{pruned.name}"]
    cli.train([*itself, *QUICK, "--output", str(tmp_path / "run")])
    ours = [record.message for record in caplog.records if record.name == "timm_linop.doubts"]
    assert [message.split()[0] for message in ours] == ["Layers", "The"]
    rows = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in rows] == ["dense", "pruned", "expanded, KD"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "test_resnet"], "nothing to prune"),
        (["--weights", "DENSE", "--ratio", "1"], "ratio=1"),
        (["--weights", "DENSE", "--round-to", "0"], "round_to=0"),
        (["--weights", "DENSE", "--dataset", "parquet:nothing*"], "DataError"),
        (["--weights", "DENSE", "--output", "DENSE"], "OutputFolderError"),
    ],
)
def test_prune_refuses_likewise(
    flags: list[str],
    message: str,
    dense: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = [] if "--output" in flags else ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.prune([flag.replace("DENSE", str(dense)) for flag in flags] + output)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_divergence_is_told(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--pruned", str(pruned), *QUICK, "--gamma", "0", "--lr", "1e30"]
    with pytest.raises(SystemExit):
        cli.train([*argv, "--output", str(tmp_path / "run")])
    assert "training has diverged" in capsys.readouterr().err
    assert (tmp_path / "run" / "recipe.yaml").is_file()


@pytest.mark.slow
def test_accelerate_launches_both_scripts(dense: Path, tmp_path: Path) -> None:
    """The commands of the README, as a user types them."""
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]
    runs = {"pruned": tmp_path / "pruned", "slim": tmp_path / "slim"}
    prune = ["prune.py", "--model", "test_resnet", "--weights", f"{dense}/slim/model.safetensors"]
    prune += ["--in-chans", "1", "--img-size", "32", "--dataset", "digits", "--output"]
    train = ["train.py", "--pruned", str(runs["pruned"]), "--teacher", f"local-dir:{dense}", *QUICK]
    for command in ([*prune, str(runs["pruned"])], [*train, "--output", str(runs["slim"])]):
        done = subprocess.run([*launch, *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (runs["slim"] / "slim" / "model.safetensors").is_file()
    assert "epoch 1/1: task" in done.stdout
