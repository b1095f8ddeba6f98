"""From a split to batches: a plain DataLoader that accelerate can prepare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from timm_linop.data.transforms import Transform
from timm_linop.errors import DataError


class Examples(Dataset[tuple[Any, int]]):
    """A split as (transformed image, label) pairs, which names the image that it cannot read.

    The rows of a batch are fetched at once and decoded one by one. `Dataset.with_transform` would
    hold the whole batch decoded (gigabytes, where the images are photographs), would be no faster,
    and would not say which image is broken.

    What a transform draws depends on the seed, the epoch and the image's place alone: not on the
    batch, the process or the worker it comes in, nor on what was drawn before. So a run that is
    taken up again, or spread over other processes, sees the same images.
    """

    def __init__(
        self, split: datasets.Dataset, transform: Callable[[PIL.Image.Image], Any], seed: int
    ) -> None:
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        self.decode = split.features["image"].decode_example
        self.stored = split.cast_column("image", datasets.Image(decode=False))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.stored)

    def set_epoch(self, epoch: int) -> None:
        """Let transforms draw anew."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        """Give the pairs of one batch, which is what a DataLoader asks for."""
        rows = self.stored[indices]
        with _own_draws():
            images = [self._image(*each) for each in zip(indices, rows["image"], strict=True)]
        return list(zip(images, rows["label"], strict=True))

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


def make_loader(
    split: datasets.Dataset,
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
            image is left out, of which batch normalisation could take no statistics.
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
    return DataLoader(
        Examples(split, transform, seed),
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(split) > batch_size > 1 and len(split) % batch_size == 1,
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
