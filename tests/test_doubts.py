"""What a run says before it trains where its user may have meant something else."""

from __future__ import annotations

import pytest
import timm

from timm_linop.card import Result
from timm_linop.doubts import warn_of_recipe, warn_of_size, warn_of_teacher
from timm_linop.flags import parse
from timm_linop.recipe import ModelConfig, Recipe

SLIM = ["--pruned", "runs/pruned"]
TAUGHT = [*SLIM, "--teacher", "dense"]
EXPANDED = "Layers are expanded, as --pruned does by itself; --rate 3 says so"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (TAUGHT, [EXPANDED]),
        ([*TAUGHT, "--rate", "3"], []),
        ([*TAUGHT, "--gamma", "3000"], []),
        ([*SLIM, "--gamma", "0"], [EXPANDED]),
        ([*TAUGHT, "--rate", "0"], []),
        ([*TAUGHT, "--recipe", "default"], []),
        ([*TAUGHT, "--recipe", "paper-finetune"], []),
        ([*SLIM, "--rate", "0", "--gamma", "0"], []),
        ([*TAUGHT, "--rate", "0", "--gamma", "0"], ["teacher='dense' is not asked"]),
        ([*TAUGHT, "--rate", "0", "--gamma", "0", "--kd-weight", "1"], []),
        (["--model", "test_resnet"], []),
        (["--model", "test_resnet", "--teacher", "dense"], ["teacher='dense' is not asked"]),
    ],
)
def test_what_no_flag_says(
    flags: list[str], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = parse(Recipe, flags, "train.py")
    warn_of_recipe(given, given.effective())
    assert len(caplog.messages) == len(told)
    assert all(map(str.startswith, caplog.messages, told))


@pytest.mark.parametrize(
    ("asked", "warns"),
    [
        (ModelConfig(pruned="runs/pruned"), False),
        (ModelConfig(pruned="runs/pruned", img_size=32), False),
        (ModelConfig(pruned="runs/pruned", img_size=28), True),
        (ModelConfig(pruned="bare.pth", model="test_resnet", img_size=28), False),
        (ModelConfig(model="test_resnet", img_size=28), False),
    ],
)
def test_images_of_another_size_than_the_slim_models(
    asked: ModelConfig, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("test_resnet", pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    warn_of_size(asked, model)
    assert bool(caplog.messages) == warns
    assert not warns or "images of 32 x 32, and --img-size 28" in caplog.text


@pytest.mark.parametrize(
    ("dense", "pruned", "warns"),
    [(92.0, 80.0, False), (80.0, 80.0, True), (9.8, 80.0, True), (92.0, None, False)],
)
def test_a_teacher_that_knows_no_more(
    dense: float, pruned: float | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    measured = [Result("dense", dense)]
    measured += [] if pruned is None else [Result("pruned", pruned)]
    warn_of_teacher(measured)
    assert bool(caplog.messages) == warns
    assert not warns or "Is --teacher the trained dense model?" in caplog.text
