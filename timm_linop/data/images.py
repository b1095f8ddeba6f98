"""What a run needs to know of a labelled image set, and how it is loaded and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

import datasets
import numpy as np

from timm_linop.data.columns import encode_labels, image_and_label, labels_of
from timm_linop.data.loader import Examples, StreamedExamples
from timm_linop.data.sources import read_source
from timm_linop.data.splits import three_splits, usable_splits
from timm_linop.data.stream import Split, Stream, class_names_of, three_streams
from timm_linop.data.transforms import channel_problem
from timm_linop.errors import DataError


@dataclass(frozen=True)
class ImageData:
    """A labelled image set in three splits.

    Each split has two columns only: ``image`` (``datasets.Image``, which gives PIL images) and
    ``label`` (``datasets.ClassLabel``, which gives whole numbers). It is a ``datasets.Dataset``,
    or a `Stream` of its rows as they are stored; both have a length, and `make_loader` takes both.

    Attributes:
        name: What a model card calls it: "scikit-learn digits", "idx:fashion-mnist", the Hub id.
            Of a local path only the last part stands here, since cards are public.
        train: The images to learn from; every class has at least one.
        validation: The images to choose by.
        test: The images to report on.
        class_names: One name per class, in the order of the labels.
        mode: PIL mode of the first training image as stored, e.g. "L", "RGB".

    Example:
        >>> data = load_data("digits")
        >>> data.train[0]["image"].size, data.class_names[data.train[0]["label"]]
        ((8, 8), '0')
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mode: str


def load_data(
    spec: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> ImageData:
    """Load a labelled image set and divide it into train, validation and test.

    Splits: train, validation and test are used as they are. Where only one of validation and
    test stands beside train, it is the test set, and validation is cut off train; where there is
    only train, both are cut off it. A cut is 10% of train, or as many images as there are classes
    if that is more; it is stratified, with a fixed seed. A split without any label, as hidden
    test sets are published, counts as absent.

    Args:
        spec: One of

            - ``digits``: scikit-learn's digits, 8x8 grey, 1000 / 297 / 500 images; no download
            - ``imagefolder:DIR``: ``DIR/class/image.png``, or that below ``DIR/train``,
              ``DIR/validation`` (or ``val``, ``valid``) and ``DIR/test``
            - ``idx:DIR``: MNIST's files (``train-images-idx3-ubyte``, ``t10k-...``), raw or .gz;
              class names from ``classes.txt`` or ``labels.txt`` in DIR, else "0", "1", ...
            - ``parquet:GLOB``: a file whose name begins with train, validation or test goes to
              that split; if none does, all of them are train
            - ``owner/name`` or ``owner/name:config``: a dataset on the Hub, or in its cache

            `datasets` caches what it reads of all but the first and third under ``HF_HOME``.
        image_column: The column of images; by default the only one that holds images.
        label_column: The column of labels; by default the only ``ClassLabel``, or else a column
            of whole numbers or strings called label, labels, class, ...
        streaming: Read Hub datasets and parquet files while they are trained on, without a copy
            on the disk. Only what their metadata tell is known before: the label column must be a
            ``ClassLabel``, the number of images must be given, labels are checked as they come,
            and nothing is cut off train: one labelled split beside it is dealt, images 0, 2, 4...
            to validation and 1, 3, 5... to test.

    Returns:
        The data, its first image read; its labels all checked, unless streaming.

    Raises:
        DataError: The source is missing or broken, the columns are ambiguous, a label is missing
            or out of range, a split is empty, a class has too few images, or the data cannot be
            streamed.

    Example:
        >>> data = load_data("digits")
        >>> data.name, len(data.train), len(data.validation), len(data.test), data.mode
        ('scikit-learn digits', 1000, 297, 500, 'L')
    """
    name, splits = read_source(spec, streaming=streaming)
    splits = usable_splits(splits, name)
    if streaming:
        return _streamed(name, splits, image_column, label_column)
    splits = image_and_label(splits, name, image=image_column, label=label_column)
    splits, class_names = encode_labels(splits, name)
    _refuse_empty_classes(splits["train"], class_names, name)
    splits = three_splits(splits, name)
    mode, _ = Examples(splits["train"], attrgetter("mode"), seed=0)[0]
    return ImageData(name, **splits, class_names=class_names, mode=mode)


def _streamed(
    name: str, streams: dict[str, Stream], image: str | None, label: str | None
) -> ImageData:
    """The same for streams, of which only the first row is read."""
    rows = {split: stream.rows for split, stream in streams.items()}
    rows = image_and_label(rows, name, image=image, label=label, decode=False)
    streams = {split: replace(stream, rows=rows[split]) for split, stream in streams.items()}
    class_names = class_names_of(streams["train"], name)
    splits = three_streams(streams, name)
    first = [next(iter(splits["train"]))]
    mode = StreamedExamples(splits["train"], attrgetter("mode"), seed=0).__getitems__(first)[0][0]
    return ImageData(name, **splits, class_names=class_names, mode=mode)


def _refuse_empty_classes(train: datasets.Dataset, class_names: tuple[str, ...], name: str) -> None:
    """Refuse a class that the model would never see."""
    if len(class_names) < 2:
        raise DataError(
            f"{name} has only the class {class_names[0]!r}: there is nothing to tell apart; "
            "give data with two classes or more."
        )
    counts = np.bincount(labels_of(train, name, "train"), minlength=len(class_names))
    empty = [class_names[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"{name} has no training image of {len(empty)} of its {len(class_names)} classes "
            f"({shown}); add some, or take these names out of the list of classes."
        )


def check_fits(data: ImageData, *, num_classes: int, in_chans: int) -> None:
    """Hold a data set against a model, before any long work.

    Args:
        data: The data.
        num_classes: Outputs of the model's classifier.
        in_chans: Channels the model reads. A model with 3 takes grey images too (converted),
            a model with 1 refuses colour, and 16-bit or float images are always refused, since
            PIL would clip them.

    Raises:
        DataError: The model has more or fewer outputs than the data has classes, or the images
            cannot be given the model's channels without loss.

    Example:
        >>> data = load_data("digits")
        >>> check_fits(data, num_classes=10, in_chans=3)
        >>> check_fits(data, num_classes=1000, in_chans=3)
        Traceback (most recent call last):
        timm_linop.errors.DataError: scikit-learn digits has 10 classes, but the model has 1000 ...
    """
    if num_classes != len(data.class_names):
        raise DataError(
            f"{data.name} has {len(data.class_names)} classes, but the model has {num_classes} "
            f"outputs; create the model with num_classes={len(data.class_names)}."
        )
    if problem := channel_problem(data.mode, in_chans):
        raise DataError(f"{data.name}: {problem}")
