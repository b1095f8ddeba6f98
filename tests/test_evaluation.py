"""Figures of a split, against a count by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from timm_linop.evaluation import evaluate, write_per_class


@pytest.mark.parametrize("classes", [3, 12])
def test_every_image_counts_once(classes: int) -> None:
    images, labels = torch.randn(50, 4), torch.randint(classes, (50,))
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, classes)).train()
    accelerator = Accelerator(cpu=True)
    pairs = list(zip(images, labels, strict=True))
    batches = accelerator.prepare(DataLoader(pairs, batch_size=7))  # type: ignore[arg-type]
    found = evaluate(model, batches, accelerator)
    assert model.training and model[0].training
    logits = model.eval()(images).detach()
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.top1 == 100 * (ranks == 0).sum().item() / 50
    assert found.top5 == 100 * (ranks < 5).sum().item() / 50
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    expected = torch.zeros(classes, classes, dtype=torch.int64)
    for label, guess in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, guess] += 1
    assert torch.equal(found.confusion, expected)
    assert list(found.row()) == ["validation_loss", "validation_accuracy", "validation_top5"]


def test_per_class_accuracy(tmp_path: Path) -> None:
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    write_per_class(counts, ["cat", "dog, large", "cow"], tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "dog, large", "cow"]
    assert [(row["images"], row["right"], row["accuracy"]) for row in rows] == [
        ("4", "3", "75.0"),
        ("0", "0", ""),
        ("4", "2", "50.0"),
    ]
