"""--dry-run: what it tells is counted by hand here, and it leaves nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training import dense_and_slim, recipe_of, trainer_of
from timm_linop import cli, dry_run
from timm_linop.bench import count_macs
from timm_linop.recipe import ComputeConfig, DistillConfig, OptimConfig


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return dense_and_slim(tmp_path_factory.mktemp("names"), "test_resnet")


def number(text: str, part: str) -> int:
    found = re.search(rf"^ *{part}:? +([\d,]+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def test_numbers_are_those_of_the_run(names: tuple[str, str], tmp_path: Path) -> None:
    distill = DistillConfig(names[0], gamma=3000, pairs=("last",))
    compute = ComputeConfig(grad_accum_steps=2)
    recipe = recipe_of(names[1], tmp_path, distill=distill, compute=compute)
    trainer = trainer_of(recipe)
    images = next(iter(trainer.batches))[0]
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    told = dry_run.describe(trainer, images)
    assert all(torch.equal(t, before[name]) for name, t in trainer.model.state_dict().items())
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    assert number(told, "trainable parameters") == sum(p.numel() for p in parameters)
    size = (1, 32, 32)
    assert number(told, "student") == 3 * 2 * 100 * count_macs(trainer.model, size)
    assert trainer.teacher is not None
    assert f"{2 * 100 * count_macs(trainer.teacher.model, size):,}" in told
    # The last layer's maps are 1 x 1: its width is what enters the Gram matrices.
    last = [next(iter(taps.names.values())) for taps in trainer.objective.taps]
    own, theirs = (
        taps.model.get_submodule(name).weight.shape[0]
        for taps, name in zip(trainer.objective.taps, last, strict=True)
    )
    assert number(told, "Gram matrices") == 2 * 100 * 32 * (3 * own + theirs)
    assert "layers expanded" in told


def test_memory_of_the_optimiser_is_seen_not_guessed() -> None:
    for opt, kept in (("sgd", 1), ("adamw", 2), ("lion", 1)):
        assert dry_run._numbers_kept(OptimConfig(opt=opt)) == kept
    assert dry_run._numbers_kept(OptimConfig(opt="momentum", momentum=0.0)) == 0


def test_activations_shrink_when_they_are_computed_twice(
    names: tuple[str, str], tmp_path: Path
) -> None:
    recipe = recipe_of(names[1], tmp_path, distill=DistillConfig(names[0], gamma=3000))
    trainer = trainer_of(recipe)
    images = next(iter(trainer.batches))[0]
    once = dry_run._kept_for_backward(trainer.model, images)
    assert once >= 100 * 4 * 32 * 32  # the images themselves
    twice = trainer_of(replace(recipe, compute=ComputeConfig(grad_checkpointing=True)))
    assert dry_run._kept_for_backward(twice.model, images) < once


def test_two_steps_and_nothing_written(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, pruned = names
    output = tmp_path / "run"
    output.mkdir()
    (output / "mine.txt").write_text("kept")  # a folder in use is no obstacle
    flags = ["--pruned", pruned, "--teacher", teacher, "--img-size", "32", "--crop-pct", "1.0"]
    cli.train([*flags, "--dry-run", "--output", str(output)])
    told = capsys.readouterr().out
    assert "step 1: 128 images, loss" in told and "step 2: 128 images" in told
    assert "step 3" not in told and "nothing was written" in told
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
