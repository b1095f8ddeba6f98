"""Splits that are read while they are trained on: no copy on the disk, one pass at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets

from timm_linop.errors import DataError

_LOGGER = logging.getLogger(__name__)
_BUFFER = 8192  # rows that shuffling holds, as timm's own readers of streams

Row = tuple[int, dict[str, Any] | None, int]


@dataclass
class Stream:
    """A split that can only be read from its beginning on: the sampler of its own DataLoader.

    It yields rows as they are stored, for `loader.StreamedExamples` to decode. Since a sampler
    draws in the main process, and accelerate shares out a sampler's batches, all that accelerate
    does for a split in memory holds for a stream, too: evening out the ranks, leaving out what
    was repeated for that from metrics, skipping batches of a resumed epoch without decoding them.
    Each process reads all rows, whatever the number of its workers, and decodes its own only.

    Attributes:
        rows: ``image`` (as stored, not decoded) and ``label``, once `load_data` is through.
        size: Images in ``rows``, as their metadata tell.
        where: What messages call it: "the train split of parquet:data".
        parts: Of every so many rows one is this split's...
        part: ...namely this one.

    Raises:
        DataError: While it is read: a label is missing or out of range, rows cannot be read, or
            there are more or fewer of them than ``size``.

    Example:
        >>> kinds = datasets.Features(image=datasets.Value("string"),
        ...                           label=datasets.ClassLabel(names=["cat", "dog"]))
        >>> rows = datasets.Dataset.from_dict({"image": list("abc"), "label": [0, 1, 1]}, kinds)
        >>> list(Stream(rows.to_iterable_dataset(), 3, "the test split of pets", parts=2))
        [(0, 'a', 0), (1, 'c', 1)]
    """

    rows: datasets.IterableDataset
    size: int
    where: str
    parts: int = 1
    part: int = 0

    @property
    def features(self) -> datasets.Features:
        """Types of the columns."""
        return self.rows.features

    def __len__(self) -> int:
        return len(range(self.part, self.size, self.parts))

    def __iter__(self) -> Iterator[Row]:
        """Yield (place in this stream, image as stored, label)."""
        known = self.features["label"].num_classes
        found = 0
        for found, row in enumerate(self._read(), 1):
            place, part = divmod(found - 1, self.parts)
            if part != self.part:
                continue
            label = row["label"]
            if label is None or not 0 <= label < known:
                raise DataError(
                    f"{self.where}: image {place} of {len(self)} has label {label}, outside "
                    f"0..{known - 1} ({known} classes); correct it, or take the image out."
                )
            yield place, row["image"], label
        if found != self.size:
            raise DataError(
                f"{self.where} ended after {found} images, but its metadata tell of {self.size}; "
                "write it anew with `datasets`, or train without --streaming."
            )

    def _read(self) -> Iterator[dict[str, Any]]:
        """Read the rows; whatever a library below raises becomes a DataError."""
        found = 0
        try:
            for row in self.rows:
                yield row
                found += 1
        except Exception as error:
            why = str(error.__cause__ or error).strip().partition("\n")[0]
            raise DataError(
                f"{self.where} cannot be read beyond image {found} of {self.size}: {why}; check "
                "the connection and the files, then start it again, or go on with --resume."
            ) from error

    def shuffled(self, seed: int) -> Stream:
        """Give the same images in an order that ``seed`` and the epoch determine.

        Files come in another order, and images of a few thousand rows, from up to ten files at
        once, are mixed. Dealt splits cannot be shuffled: places decide which images are theirs.
        """
        if self.parts > 1:
            raise ValueError(f"{self.where} is dealt by places, so its order must stay.")
        return replace(self, rows=self.rows.shuffle(seed=seed, buffer_size=_BUFFER))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass takes."""
        self.rows.set_epoch(epoch)


Split = datasets.Dataset | Stream


def class_names_of(stream: Stream, name: str) -> tuple[str, ...]:
    """Read the class names off the type of the label column."""
    kind = stream.features["label"]
    if not isinstance(kind, datasets.ClassLabel):
        raise DataError(
            f"{name}: the label column holds {kind}, which names no classes, and a stream is not "
            "read through to find them; write the data with `datasets` and a ClassLabel column, "
            "or train without --streaming."
        )
    if len(kind.names) < 2:
        raise DataError(f"{name} has one class only; give data with two classes or more.")
    return tuple(kind.names)


def three_streams(splits: dict[str, Stream], name: str) -> dict[str, Stream]:
    """Complete train and one labelled split to train, validation and test.

    Nothing can be drawn off a stream by classes, so the held-out split is dealt: its images 0, 2,
    4... are validation, 1, 3, 5... are test.
    """
    splits = {split: rows for split, rows in splits.items() if _labelled(split, rows, name)}
    held_out = [splits[split] for split in ("validation", "test") if split in splits]
    if len(held_out) == 2:
        return splits
    if not held_out or len(held_out[0]) < 2:
        raise DataError(
            f"{name} has no labelled images beside train, and none can be cut off a stream; add a "
            "validation or test split (parquet files whose names begin so), or train without "
            "--streaming."
        )
    validation, test = (replace(held_out[0], parts=2, part=part) for part in (0, 1))
    return {"train": splits["train"], "validation": validation, "test": test}


def _labelled(split: str, stream: Stream, name: str) -> bool:
    """Tell by its first image whether a split has labels; published test sets often have none."""
    first = next(stream._read(), None)
    if first is None or first["label"] not in (None, -1):
        return True
    if split == "train":
        raise DataError(f"{name}: the first training image has no label; choose a label_column.")
    _LOGGER.warning("%s: the %s split has no labels and is left out.", name, split)
    return False
