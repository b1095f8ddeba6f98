"""Runs that push: checked before, pushed from on the way, and whole whatever the Hub does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

import timm_linop
from tests.hub_client import REPO
from tests.hub_server import HubServer
from timm_linop import cli
from timm_linop.errors import RecipeError
from timm_linop.flags import parse
from timm_linop.publish import BRANCH
from timm_linop.recipe import Recipe

FLAGS = [
    "--img-size",
    "32",
    "--crop-pct",
    "1.0",
    "--batch-size",
    "100",
    "--no-aug",
    "--drop",
    "0.2",
]
HUB = ["--push-to-hub", REPO, "--hub-license", "mit"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    folder = tmp_path_factory.mktemp("start") / "pruned"
    return timm_linop.save(timm_linop.prune(dense, ratio=0.5), folder)


def argv(pruned: Path, output: Path, *more: str) -> list[str]:
    return ["--pruned", str(pruned), "--gamma", "0", "--output", str(output), *FLAGS, *more]


def test_pushing_on_the_way_needs_a_repo() -> None:
    flags = ["--model", "test_resnet", "--push-every", "2"]
    with pytest.raises(RecipeError, match="--push-to-hub"):
        parse(Recipe, flags, "train.py").effective()
    assert parse(Recipe, [*flags, *HUB], "train.py").effective().snapshots.push_every == 2


def test_a_repo_that_is_none_is_told_before_training(
    pruned: Path, token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.train(argv(pruned, tmp_path / "run", "--push-to-hub", "slim"))
    assert "'slim' is no id of a repo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_failed_push_leaves_the_run_whole_and_names_the_command(
    pruned: Path,
    hub: HubServer,
    token: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.fail("POST", "/commit/", status=403)
    run = tmp_path / "a run"
    with pytest.raises(SystemExit) as left:
        cli.train(argv(pruned, run, "--epochs", "1", *HUB, "--hub-private"))
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "answered 403" in said and "Traceback" not in said and token not in said
    command = shlex.split(said.split("push it later with: ")[1])
    assert command == ["timm-linop", "push", str(run), REPO, "--private", "--license", "mit"]
    left_behind = {path.name for path in run.iterdir()}
    assert left_behind >= {"recipe.yaml", "metrics.csv", "results.json", "figures", "slim"}
    cli.main(command[1:])
    assert HfApi().model_info(REPO).private
    assert ModelCard(Path(HfApi().hf_hub_download(REPO, "README.md")).read_text()).data.license
    written = [path for path in run.rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--model-ema"]])
def test_pushing_on_the_way_changes_nothing_of_the_run(
    more: list[str], pruned: Path, hub: HubServer, token: str, tmp_path: Path
) -> None:
    flags = ["--epochs", "3", "--rate", "2", *more]
    cli.train(argv(pruned, tmp_path / "plain", *flags))
    hub.fail("POST", "/commit/training", status=403)  # the first
    with pytest.warns(UserWarning, match=r"epoch 1 is not on alice/slim: .*403.*Training goes on"):
        cli.train(argv(pruned, tmp_path / "pushed", *flags, *HUB, "--push-every", "1"))
    ends = [load_file(tmp_path / name / "slim/model.safetensors") for name in ("plain", "pushed")]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    api = HfApi()
    titles = [commit.title for commit in api.list_repo_commits(REPO, revision=BRANCH)]
    assert titles == ["Epoch 3", "Epoch 2", "initial commit"]
    assert len(api.list_repo_commits(REPO)) == 2
    last = load_file(api.hf_hub_download(REPO, "model.safetensors", revision=BRANCH))
    assert all(torch.allclose(last[name], ends[1][name], atol=1e-6) for name in last)
    card = Path(api.hf_hub_download(REPO, "README.md", revision=BRANCH)).read_text()
    assert "unfinished: epoch 3" in card and "license: mit" in card
    assert f"hf-hub:{REPO}@{BRANCH}" in card and 'convert("L")' in card  # images as the run's


@pytest.mark.slow
def test_what_prune_leaves_is_pushed_too(pruned: Path, token: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    timm_linop.save(dense, tmp_path / "dense")
    weights = ["--weights", str(tmp_path / "dense"), "--img-size", "32"]
    cli.prune([*weights, "--output", str(tmp_path / "run"), *HUB])
    assert "config.json" in HfApi().list_repo_files(REPO)
