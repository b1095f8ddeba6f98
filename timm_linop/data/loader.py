"""From a split to batches: a plain DataLoader that accelerate can prepare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from timm_linop.data.stream import Row, Split, Stream
from timm_linop.data.transforms import Transform
from timm_linop.errors import DataError


class _Pairs(Dataset[tuple[Any, int]]):
    """A split as (transformed image, label) pairs, which names the image that it cannot read.

    What a transform draws depends on the seed, the epoch and the image's place alone: not on the
    batch, the process or the worker it comes in, nor on what was drawn before. So a run that is
    taken up again, or spread over other processes, sees the same images.
    """

    def __init__(
        self, split: Split, transform: Callable[[PIL.Image.Image], Any], seed: int
    ) -> None:
        self.seed, self.size = seed, len(split)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        self.decode = replace(split.features["image"], decode=True).decode_example
        self.transform = transform

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Let transforms draw anew."""
        self._epoch.fill_(epoch)

    def _pairs(self, rows: list[Row]) -> list[tuple[Any, int]]:
        with _own_draws():
            return [(self._image(place, stored), label) for place, stored, label in rows]

    def _image(self, index: int, stored: dict[str, Any] | None) -> Any:
        """Decode and transform one image; whatever a codec raises becomes a DataError."""
        path = (stored or {}).get("path")
        where = f"image {index} of {len(self)}" + (f" ({path})" if path else "")
        try:
            image = self.decode(stored)
        except Exception as error:
            raise DataError(
                f"{where} cannot be read: {error}; replace the image or remove it."
            ) from error
        _seed(self.seed, int(self._epoch), index)
        try:
            return self.transform(image)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


class Examples(_Pairs):
    """The pairs of a split in memory, by their places.

    The rows of a batch are fetched at once and decoded one by one. `Dataset.with_transform` would
    hold the whole batch decoded (gigabytes, where the images are photographs), would be no faster,
    and would not say which image is broken.
    """

    def __init__(
        self, split: datasets.Dataset, transform: Callable[[PIL.Image.Image], Any], seed: int
    ) -> None:
        super().__init__(split, transform, seed)
        self.stored = split.cast_column("image", datasets.Image(decode=False))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """Give the pairs of one batch, which is what a DataLoader asks for."""
        rows = self.stored[indices]
        return self._pairs(list(zip(indices, rows["image"], rows["label"], strict=True)))


class StreamedExamples(_Pairs):
    """The pairs of rows that a `Stream` yields, which is also the sampler."""

    def __getitems__(self, rows: list[Row]) -> list[tuple[Any, int]]:
        """Give the pairs of one batch, which is what a DataLoader asks for."""
        return self._pairs(rows)


def make_loader(
    split: Split,
    transform: Transform,
    batch_size: int,
    *,
    shuffle: bool,
    workers: int = 0,
    seed: int = 0,
) -> DataLoader[Any]:
    """Make the batches of a split, ready for ``accelerator.prepare``.

    Args:
        split: The train, validation or test split of an `ImageData`.
        transform: From a PIL image to a tensor [c h w]; `make_transforms` makes two.
        batch_size: Images per batch and process.
        shuffle: True for training: another order each epoch, and a last batch of one single
            image is left out, of which batch normalisation could take no statistics. A stream
            mixes a few thousand images at a time.
        workers: Processes that decode; they live as long as the loader. 0 decodes in this one.
        seed: Of the order, and of what the transforms draw; call ``dataset.set_epoch`` before each
            epoch, for other draws.

    Returns:
        A loader of (images float32 [b c h w], labels int64 [b]) tuples. Drawing a batch raises a
        DataError for an image that is broken or does not fit, naming its place in the split.

    Example:
        >>> from timm_linop.data import Augmentation, load_data, make_transforms
        >>> config = {"input_size": (3, 32, 32), "crop_pct": 1.0}
        >>> train, _ = make_transforms(config, augment=Augmentation(hflip=0.0))
        >>> loader = make_loader(load_data("digits").train, train, 64, shuffle=True)
        >>> images, labels = next(iter(loader))
        >>> images.shape, labels.dtype, len(loader)
        (torch.Size([64, 3, 32, 32]), torch.int64, 16)
    """
    streamed = isinstance(split, Stream)
    pairs = (StreamedExamples if streamed else Examples)(split, transform, seed)
    rows = (split.shuffled(seed) if shuffle else split) if streamed else None
    options: dict[str, Any] = {"shuffle": shuffle, "workers": workers, "seed": seed}
    return batches_of(pairs, batch_size, sampler=rows, **options)


def batches_of(
    pairs: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    workers: int = 0,
    seed: int = 0,
    sampler: Stream | None = None,
) -> DataLoader[Any]:
    """Make batches of pairs, as `make_loader` does of a split.

    Args:
        pairs: Gives ``(image [c h w], label)`` by place; a label may be a tuple of numbers.
        batch_size: As there; so are the others.
        shuffle: True for training.
        workers: Processes that decode.
        seed: Of the order.
        sampler: What yields the places, in the order it likes; None takes all of them.

    Returns:
        A loader of (images float32 [b c h w], labels int64 [b] or [b numbers]) tuples.
    """
    size: int = len(pairs)  # type: ignore[arg-type]
    return DataLoader(
        pairs,
        batch_size=batch_size,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        drop_last=shuffle and size > batch_size > 1 and size % batch_size == 1,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_stack,
        generator=torch.Generator().manual_seed(seed),
    )


def _stack(examples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch of examples."""
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.tensor(labels)


@contextmanager
def _own_draws() -> Iterator[None]:
    """Leave this process's generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed(*numbers: int) -> None:
    """Seed the generators that timm's and torchvision's transforms draw from."""
    mixed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed would seed the GPUs, too
