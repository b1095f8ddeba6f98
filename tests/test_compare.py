"""A card may show another run's row, if that run started from the same weights and data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm

import timm_linop
from tests.training import dense_and_slim, recipe_of
from timm_linop import run
from timm_linop.card import read_record
from timm_linop.compare import compared_runs
from timm_linop.errors import RecipeError
from timm_linop.recipe import (
    DistillConfig,
    ExpandConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    WatchConfig,
)


def fine_tuned(pruned: str, output: Path, **groups: object) -> Path:
    recipe = recipe_of(pruned, output, expand=ExpandConfig(0), distill=DistillConfig(gamma=0))
    model = replace(recipe.model, img_size=32)
    run.train(replace(recipe, **{"model": model, **groups}))
    return output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slim model, vanilla fine-tuning of it, and LinOP that is held against that."""
    folder = tmp_path_factory.mktemp("compare")
    _, pruned = dense_and_slim(folder, "test_resnet")
    fine_tuned(pruned, folder / "vanilla", optim=OptimConfig(lr=0.02))
    # The weights count, not where they lie.
    shutil.copytree(pruned, folder / "copy")
    fine_tuned(
        str(folder / "copy"),
        folder / "linop",
        expand=ExpandConfig(2),
        optim=OptimConfig(lr=0.01),
        model=ModelConfig(pruned=str(folder / "copy"), img_size=32),
        watch=WatchConfig(compare=(str(folder / "vanilla"),)),
    )
    return folder


def test_the_other_runs_row_is_shown_with_costs_measured_here(runs: Path) -> None:
    own = json.loads((runs / "vanilla/results.json").read_text())[-1]
    assert own["arm"] == "vanilla"
    rows = {r["arm"]: r for r in json.loads((runs / "linop/results.json").read_text())}
    assert list(rows) == ["pruned", "vanilla", "expanded"]
    for key in ("accuracy", "top5", "training_seconds", "parameters", "macs", "size_bytes"):
        assert rows["vanilla"][key] == own[key], key
    assert rows["vanilla"]["latency_ms"] != own["latency_ms"]
    weights = runs / "linop" / "slim" / "model.safetensors"
    assert rows["expanded"]["size_bytes"] == weights.stat().st_size


def test_the_card_of_a_run_is_whole(runs: Path) -> None:
    data = read_record(runs / "linop" / "card.json")
    text = (runs / "linop" / "slim" / "README.md").read_text()
    assert data.differences == {"vanilla": {"lr": [0.02, 0.01]}}
    assert "Vanilla fine-tuning was run with `lr=0.02` where this model had `0.01`." in text
    assert data.contraction.moved < 1e-5 and data.contraction.images == 100
    assert sum(r.images for r in data.weakest) > 0
    assert data.machine["batch"] == "32" and {"device", "threads", "dtype"} <= set(data.machine)
    assert [figure.path for figure in data.figures] == [
        f"figures/{name}.png"
        for name in ("accuracy_against_parameters", "training", "confusion", "widths")
    ]
    for figure in data.figures:
        assert (runs / "linop" / "slim" / figure.path).is_file()
    assert data.hyperparameters["rate"] == 2 and data.defaults["lr"] == 0.01
    assert not {"output", "compare", "resume"} & {*data.hyperparameters, *data.defaults}
    assert str(runs) not in (runs / "linop" / "card.json").read_text() + text


def start(runs: Path) -> dict:
    return json.loads((runs / "vanilla" / "start.json").read_text())


@pytest.mark.parametrize(
    ("key", "said"),
    [("weights", "pruned weights"), ("images", "splits"), ("data", "other data")],
)
def test_a_run_from_another_start_is_refused(key: str, said: str, runs: Path) -> None:
    other = {**start(runs), key: "something else"}
    with pytest.raises(RecipeError, match=said):
        compared_runs([str(runs / "vanilla")], other, "linop", Recipe())


def test_what_is_no_finished_run_is_refused(runs: Path, tmp_path: Path) -> None:
    def refused(said: str, arm: str = "linop", times: int = 1) -> None:
        with pytest.raises(RecipeError, match=said):
            compared_runs([str(folder)] * times, start(runs), arm, Recipe())

    folder = shutil.copytree(runs / "vanilla", tmp_path / "run")
    refused("row already", arm="vanilla")
    refused("row already", times=2)
    (folder / "results.json").write_text("[]")
    refused("no row of its own")
    (folder / "results.json").write_text("{")
    refused("damaged")
    (folder / "results.json").unlink()
    refused("holds no results.json")
    (folder / "start.json").unlink()
    refused("holds no start.json")


def test_a_wrong_comparison_is_refused_before_training(runs: Path, tmp_path: Path) -> None:
    slim = timm.create_model(f"local-dir:{runs}/pruned", pretrained=True)
    slim.fc.bias.data[0] += 1
    timm_linop.save(slim, tmp_path / "other")
    watch = WatchConfig(compare=(str(runs / "vanilla"),))
    with pytest.raises(RecipeError, match="pruned weights"):
        fine_tuned(str(tmp_path / "other"), tmp_path / "run", expand=ExpandConfig(2), watch=watch)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    with pytest.raises(RecipeError, match="pass --pruned without --reinit"):
        Recipe(ModelConfig(model="resnet18"), watch=watch).effective()
