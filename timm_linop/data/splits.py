"""Train, validation, test: which are there, and how the missing ones are cut off train."""

from __future__ import annotations

import datasets
import numpy as np
from sklearn.model_selection import train_test_split

from timm_linop.errors import DataError

Splits = dict[str, datasets.Dataset]

_SEED = 0  # of every cut: the same images in every run, on every machine
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def split_called(word: str) -> str | None:
    """Give the split that a word means, if it means one.

    Example:
        >>> split_called("val"), split_called("cat")
        ('validation', None)
    """
    return next((split for split, words in _WORDS.items() if word.lower() in words), None)


def usable_splits(splits: Splits, name: str) -> Splits:
    """Name the splits train, validation and test; leave out others; refuse empty ones."""
    named: Splits = {}
    for stored, rows in splits.items():
        split = split_called(stored)
        if split in named:
            raise DataError(f"{name} has two {split} splits among {', '.join(splits)}; keep one.")
        if split and not len(rows):
            raise DataError(f"{name}: the {stored} split is empty; fill it, or remove it.")
        if split:
            named[split] = rows
    if "train" not in named:
        raise DataError(f"{name} has no train split, only {', '.join(splits) or 'nothing'}.")
    return named


def three_splits(splits: Splits, name: str) -> Splits:
    """Complete train, or train and one more, to train, validation and test."""
    train, held_out = splits["train"], [splits[s] for s in ("validation", "test") if s in splits]
    if len(held_out) == 2:
        return splits
    tenth = len(train) // 10
    if held_out:
        test = held_out[0]
    else:
        train, test = cut(train, tenth, name)
    train, validation = cut(train, tenth, name)
    return {"train": train, "validation": validation, "test": test}


def cut(rows: datasets.Dataset, size: int, name: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cut ``size`` images off a split, or as many as there are classes, in the classes' ratios.

    scikit-learn draws the lots: `Dataset.train_test_split(stratify_by_column=...)` of datasets
    5.2 walks over all rows, images included (9 s for Fashion-MNIST, where this takes 0.1 s).

    Returns:
        What is left, and what was cut off, both in the order of ``rows``.

    Raises:
        DataError: A class has only one image, so it cannot stand on both sides.
    """
    labels = rows.with_format("arrow")["label"][:].to_numpy()
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        alone = rows.features["label"].int2str(int(classes[counts.argmin()]))
        raise DataError(
            f"{name}: the class {alone!r} has only one image left in train, so none can be cut "
            "off for validation or test; add images of it, or give these splits yourself."
        )
    left, off = train_test_split(
        np.arange(len(rows)), test_size=max(size, len(classes)), stratify=labels, random_state=_SEED
    )
    # In memory: several processes of one run would write the same index file.
    return (
        rows.select(np.sort(left), keep_in_memory=True),
        rows.select(np.sort(off), keep_in_memory=True),
    )
