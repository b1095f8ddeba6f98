"""The benchmark on few images: its subset, its arms, its table and the page that shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import limited
from benchmarks.rows import read_table
from timm_linop.data import VERSIONS

ROOT = Path(__file__).parents[1]


def test_the_subset_is_as_large_for_each_class_and_always_the_same() -> None:
    train = limited.few("digits").train
    assert Counter(train["label"]) == dict.fromkeys(range(10), limited.EACH)
    limited.few.cache_clear()
    assert limited.few("digits").train["label"] == train["label"]


@pytest.mark.parametrize("arm", limited.FLAGS)
def test_every_arm_sees_as_many_images(arm: str) -> None:
    recipe = limited.recipe_of("digits", 1, arm)
    seen = recipe.schedule.epochs + len(VERSIONS) * recipe.refine.refine_epochs
    assert seen == (120 if arm == limited.LONG else limited.EPOCHS) and recipe.run.seed == 1
    assert bool(recipe.distill.asked) == ("KD" in arm)
    assert bool(recipe.model.pruned) == (arm not in (limited.DENSE, limited.SMALL))
    assert recipe.distill.task_weight == (0.3 if "KD" in arm else 1)


def test_the_small_net_has_the_pruned_ones_shape() -> None:
    small = limited.recipe_of("digits", 0, limited.SMALL).model
    net = timm.create_model("test_resnet", in_chans=1, num_classes=10, **small.model_kwargs)
    dense = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    slim = limited.timm_linop.prune(dense, torch.randn(1, 1, 28, 28), ratio=limited.RATIO)
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (net, slim)]
    assert shapes[0] == shapes[1]


def test_rows_that_are_there_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and spread are of what was measured; a seed that is missing is all that is trained."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    asked: list[tuple[int, str]] = []

    def made(name: str, seed: int, *arm: str) -> list[object]:
        asked.append((seed, *(arm or ["prepared"])))
        return [(each, net, 36, 1.0) for each in arm or (limited.DENSE, limited.PRUNED)]

    monkeypatch.setattr(limited, "trained", made)
    monkeypatch.setattr(limited, "prepared", made)
    guesses = [(limited.ON + kind, net, 50.0) for kind in limited.KINDS]
    monkeypatch.setattr(limited, "on_versions", lambda *_: guesses)
    monkeypatch.setattr(limited, "WORK", tmp_path)
    monkeypatch.setattr(limited, "SEEDS", (0, 1))
    monkeypatch.setattr(limited, "accuracy", lambda *_: 70.0 + 2 * asked[-1][0])
    monkeypatch.setattr(limited, "test_batches", lambda _: [])
    for seed in (0, 1):
        (tmp_path / f"digits-{seed}" / "pruned").mkdir(parents=True)
    limited.measure("digits", tmp_path / "rows.csv")
    assert len(asked) == 2 * len(limited.FLAGS) - 1  # the long one once
    lines = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    gone = next(line for line in lines if line.startswith(f'digits,1,"{limited.SMALL}"'))
    (tmp_path / "rows.csv").write_text("".join(line for line in lines if line != gone))
    asked.clear()
    limited.measure("digits", tmp_path / "rows.csv")
    assert asked == [(1, limited.SMALL)]
    assert sorted((tmp_path / "rows.csv").read_text().splitlines(keepends=True)) == sorted(lines)
    told = limited.summary(read_table(tmp_path / "rows.csv"))
    assert "| fine-tuning | 71.0 ± 1.4 | 70.0, 72.0 | 7,850 | 7,840 | 36 |" in told
    assert "| turned | 50.0 ± 0.0 | 50.0, 50.0 |" in told


def test_the_page_holds_the_table_of_the_results_in_the_repository() -> None:
    page = (ROOT / "docs" / "limited_data.md").read_text()
    assert limited.summary(read_table(limited.RESULTS)) in page
