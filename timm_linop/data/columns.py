"""From whatever columns a data set has to two: "image" and "label"."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import numpy as np

from timm_linop.data.splits import Splits
from timm_linop.errors import DataError, close_names

_LOGGER = logging.getLogger(__name__)
_LABEL_NAMES = ("label", "labels", "class", "classes", "target", "category", "fine_label")


def image_and_label(
    splits: Splits, name: str, *, image: str | None, label: str | None, decode: bool = True
) -> Splits:
    """Keep the image column and the label column of every split, under these names."""
    features = splits["train"].features
    image = _choose("image", image, _image_columns(features), features, name)
    label = _choose("label", label, _label_columns(features), features, name)
    if not _is_label(features[label]):
        raise DataError(
            f"{name}: the column {label!r} holds {features[label]}, not one whole number or "
            "string per image; choose another with label_column."
        )
    names = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    kept = {}
    try:
        for split, rows in splits.items():
            # Arrow knows paths, bytes and {bytes, path} as images; this only changes the type. It
            # comes before the names: a stream decodes what it renames, and compresses it again.
            cast = _image_feature(features[image], decode)
            rows = rows.select_columns([image, label]).cast_column(image, cast)
            kept[split] = rows.rename_columns(names) if names else rows
    except (ValueError, TypeError, NotImplementedError) as error:
        raise DataError(
            f"{name}: the column {image!r} holds {features[image]}, not images: {error}; "
            "choose another with image_column."
        ) from error
    return kept


def encode_labels(splits: Splits, name: str) -> tuple[Splits, tuple[str, ...]]:
    """Make every label a class number, and drop the splits that have none."""
    labelled = {split: rows for split, rows in splits.items() if not _unlabelled(rows)}
    for split in splits.keys() - labelled.keys():
        if split == "train":
            raise DataError(f"{name}: no training image has a label; choose a label_column.")
        _LOGGER.warning("%s: the %s split has no labels and is left out.", name, split)
    labels = {split: labels_of(rows, name, split) for split, rows in labelled.items()}
    feature = splits["train"].features["label"]
    if isinstance(feature, datasets.ClassLabel):
        class_names = list(feature.names)
    else:
        class_names, labels = _number(labels, name)
        new = datasets.ClassLabel(names=class_names)
        # A cast would write the whole table, images and all, to the disk again.
        labelled = {
            split: rows.remove_columns("label").add_column("label", labels[split], feature=new)
            for split, rows in labelled.items()
        }
    for split, numbers in labels.items():
        wrong = np.flatnonzero((numbers < 0) | (numbers >= len(class_names)))
        if len(wrong):
            raise DataError(
                f"{name}: image {wrong[0]} of the {split} split has label {numbers[wrong[0]]}, "
                f"outside 0..{len(class_names) - 1} ({len(class_names)} classes); correct it."
            )
    return labelled, tuple(class_names)


def labels_of(rows: datasets.Dataset, name: str, split: str) -> np.ndarray:
    """Read the labels of a split without its images; refuse missing ones by their place."""
    column = _label_column(rows)
    if column.null_count:
        first = np.flatnonzero(column.is_null().to_numpy())[0]
        raise DataError(
            f"{name}: image {first} of the {split} split has no label, as {column.null_count} of "
            f"{len(column)}; label these images, or take them out."
        )
    return column.to_numpy()


def _label_column(rows: datasets.Dataset) -> Any:
    """Give the labels as Arrow holds them (a ``pyarrow.ChunkedArray``), nulls and all."""
    return rows.with_format("arrow")["label"][:]


def _unlabelled(rows: datasets.Dataset) -> bool:
    """Tell a split of images without labels: all missing, or all -1 as the Hub writes it."""
    column = _label_column(rows)
    if column.null_count == len(column):
        return True
    return bool((column.to_numpy() == -1).all())


def _number(labels: dict[str, np.ndarray], name: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Number labels that carry no names: strings in order, whole numbers as they are."""
    everything = np.concatenate(list(labels.values()))
    if everything.dtype.kind not in "iu":
        class_names = sorted(set(everything))
        number = {class_name: i for i, class_name in enumerate(class_names)}
        return class_names, {s: np.array([number[v] for v in lab]) for s, lab in labels.items()}
    highest = int(everything.max())
    if highest >= len(everything):  # before a list of so many names is made
        raise DataError(
            f"{name}: labels go up to {highest} among {len(everything)} images, so they are no "
            "class numbers; choose another column with label_column."
        )
    return [str(i) for i in range(highest + 1)], labels


def _choose(
    kind: str, wanted: str | None, found: list[str], features: datasets.Features, name: str
) -> str:
    """Take the column asked for, or the only one that can be meant."""
    columns = ", ".join(features)
    if wanted is not None and wanted not in features:
        raise DataError(
            f"{name} has no column {wanted!r}; its columns are {columns}."
            f"{close_names(wanted, features)}"
        )
    if wanted is None and len(found) != 1:
        many = f"more than one {kind} column ({', '.join(found)})" if found else f"no {kind} column"
        raise DataError(f"{name} has {many}; its columns are {columns}: set {kind}_column.")
    return wanted if wanted is not None else found[0]


def _image_columns(features: datasets.Features) -> list[str]:
    """Columns of images, also as plain parquet has them: a struct of bytes and path."""
    return [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Image)
        or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})
    ]


def _image_feature(feature: object, decode: bool) -> datasets.Image:
    return datasets.Image(mode=getattr(feature, "mode", None), decode=decode)


def _label_columns(features: datasets.Features) -> list[str]:
    """Columns typed as classes; without any, numbers and strings under a usual name."""
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return classes or [
        name for name, kind in features.items() if name in _LABEL_NAMES and _is_label(kind)
    ]


def _is_label(feature: object) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(
        ("int", "uint", "string", "large_string")
    )
