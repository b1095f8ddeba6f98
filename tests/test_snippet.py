"""The loading snippet of a card is run, and a card whose snippet does not work is not shipped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

import timm_linop
from timm_linop.card import CardData, Dataset
from timm_linop.errors import CheckpointError
from timm_linop.snippet import check_snippet

NAMES = ("a", "/home/owl/b")
CONFIG = {"input_size": (1, 40, 32), "mean": (0.4,), "std": (0.2,), "crop_pct": 0.9}
CARD = CardData("tiny", "test_resnet", "dense", dataset=Dataset("owls", NAMES))


def saved(folder: Path, card: CardData) -> torch.nn.Module:
    model = timm.create_model("test_resnet", num_classes=2, in_chans=1).eval()
    torch.nn.init.normal_(model.fc.weight)
    timm_linop.save(model, folder, class_names=NAMES, data_config=CONFIG, card=card)
    return model


def edit(folder: Path, old: str, new: str) -> None:
    card = folder / "README.md"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))


@pytest.mark.parametrize("repo", [None, "nobody/not-pushed-yet"])
def test_the_snippet_of_a_saved_folder_runs(repo: str | None, tmp_path: Path) -> None:
    card = replace(CARD, repo=repo, input_size=CONFIG["input_size"])
    model = saved(tmp_path / "slim", card)
    check_snippet(tmp_path / "slim", model.train(), CONFIG, NAMES)
    assert model.training


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("pretrained=True", "pretrained=False", "answers something else"),
        ("is_training=False", "is_training=True", "answers something else"),
        ("**config, ", "", "answers something else|Error"),
        ("timm.data.resolve", "timm.data.dissolve", "AttributeError"),
        ("import torch\n", "import torchh\n", "ModuleNotFoundError"),
        ("classes = ['a', 'b']", "classes = ['b', 'a']", "its classes are not"),
        ("print(classes[best]", "print(best", "printed"),
        ("```python", "```", "no loading snippet"),
    ],
)
def test_a_snippet_that_does_not_work_is_told(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    model = saved(tmp_path / "slim", replace(CARD, input_size=CONFIG["input_size"]))
    edit(tmp_path / "slim", old, new)
    with pytest.raises(CheckpointError, match=said) as error:
        check_snippet(tmp_path / "slim", model, CONFIG, NAMES)
    assert re.search("slim|no loading snippet", str(error.value))


def test_many_classes_are_looked_up_in_the_model(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(21))
    model = timm.create_model("test_resnet", num_classes=21).eval()
    card = replace(CARD, dataset=Dataset("owls", names))
    timm_linop.save(model, tmp_path / "slim", class_names=names, card=card)
    config = timm.data.resolve_model_data_config(model)
    check_snippet(tmp_path / "slim", model, config, names)
    with pytest.raises(CheckpointError, match="classes"):
        check_snippet(tmp_path / "slim", model, config, names[::-1])
