"""How good a classifier is on a split: exact counts over all processes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_confusion_matrix


@dataclass(frozen=True)
class Evaluation:
    """What was counted on a split.

    Attributes:
        loss: Mean cross-entropy.
        top1: Images whose class is the model's first guess, in percent.
        top5: Images whose class is among its first five, in percent.
        confusion: Images by true class and first guess, ``classes x classes``.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor

    def row(self) -> dict[str, float]:
        """As metrics.csv has it."""
        return {
            "validation_loss": self.loss,
            "validation_accuracy": self.top1,
            "validation_top5": self.top5,
        }


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader[Any], accelerator: Accelerator) -> Evaluation:
    """Measure a model on a split, exactly: images repeated to even out the ranks count once.

    Args:
        model: Any classifier; its mode is restored.
        batches: Prepared by ``accelerator``.
        accelerator: Where it runs.

    Returns:
        The same on every process.
    """
    training = model.training
    model.eval()
    confusion, among_five, loss = torch.zeros(()), 0, 0.0
    for images, labels in batches:
        with accelerator.autocast():
            logits = model(images)
        logits, labels = accelerator.gather_for_metrics((logits.float(), labels))
        classes = logits.shape[1]
        guesses = logits.topk(min(5, classes)).indices
        counts = multiclass_confusion_matrix(guesses[:, 0], labels, classes)
        confusion = confusion.to(counts) + counts
        among_five += int((guesses == labels[:, None]).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    model.train(training)
    seen, right = int(confusion.sum()), int(confusion.trace())
    return Evaluation(loss / seen, 100 * right / seen, 100 * among_five / seen, confusion.cpu())


def write_per_class(confusion: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Write each class's images, those that were recognised, and their share in percent.

    Args:
        confusion: Images by true class and first guess, ``classes x classes``.
        class_names: In the same order.
        path: The CSV file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "right", "accuracy"])
        for name, images, right in zip(
            class_names, confusion.sum(1).tolist(), confusion.diagonal().tolist(), strict=True
        ):
            writer.writerow([name, images, right, 100 * right / images if images else ""])
