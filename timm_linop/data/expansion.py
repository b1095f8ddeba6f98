"""Six versions of each image, for training on few: drawn once, the same in every epoch.

Source: Luo & Wu, "Neural Network Pruning with Residual-Connections and Limited-Data", CVPR 2020:
the image itself, its blocks in another order (2 x 2, 3 x 3, 4 x 4), a square cut out, and a turn by
any angle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as images

from timm_linop.data.loader import Examples, batches_of
from timm_linop.data.stream import Split, Stream
from timm_linop.data.transforms import Transform
from timm_linop.errors import DataError

# Of a normalised image: what is erased, and the corners of a turned one, get its mean.
_MEAN = 0.0
_SIDES = (0.2, 0.5)


def original(image: Tensor, draws: torch.Generator) -> Tensor:
    """Leave an image as it is."""
    return image


def shuffled_blocks(image: Tensor, draws: torch.Generator, parts: int) -> Tensor:
    """Cut an image into equal blocks and put them together in another order.

    Args:
        image: ``c x h x w``.
        draws: Where the order is drawn from.
        parts: Blocks along each side. What is left over where they do not divide it, at the right
            and at the bottom, stays.

    Returns:
        A new image.

    Example:
        >>> image = torch.arange(4).view(1, 2, 2)
        >>> shuffled_blocks(image, torch.Generator().manual_seed(1), parts=2)
        tensor([[[1, 3],
                 [2, 0]]])
    """
    high, wide = (side // parts for side in image.shape[1:])
    inner = image[:, : parts * high, : parts * wide]
    blocks = inner.unflatten(2, (parts, wide)).unflatten(1, (parts, high)).transpose(2, 3)
    order = torch.randperm(parts**2, generator=draws)
    moved = blocks.flatten(1, 2)[:, order].unflatten(1, (parts, parts))
    result = image.clone()
    result[:, : parts * high, : parts * wide] = moved.transpose(2, 3).flatten(3).flatten(1, 2)
    return result


def cut_out(image: Tensor, draws: torch.Generator) -> Tensor:
    """Erase a square, from a fifth to a half of the image's sides, anywhere inside.

    Args:
        image: ``c x h x w``, normalised.
        draws: Where its size and its place are drawn from.

    Returns:
        A new image.
    """
    part, down, right = torch.rand(3, generator=draws).tolist()
    part = _SIDES[0] + part * (_SIDES[1] - _SIDES[0])
    high, wide = (round(part * side) for side in image.shape[1:])
    top, left = int(down * (image.shape[1] - high + 1)), int(right * (image.shape[2] - wide + 1))
    return images.erase(image, top, left, high, wide, v=_MEAN)


def turned(image: Tensor, draws: torch.Generator) -> Tensor:
    """Turn an image about its centre by any angle, within its own frame.

    Args:
        image: ``c x h x w``, normalised.
        draws: Where the angle is drawn from.

    Returns:
        A new image.
    """
    angle = 360 * torch.rand((), generator=draws).item()
    return images.rotate(image, angle, InterpolationMode.BILINEAR, fill=_MEAN)


VERSIONS: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (
    original,
    partial(shuffled_blocks, parts=2),
    partial(shuffled_blocks, parts=3),
    partial(shuffled_blocks, parts=4),
    cut_out,
    turned,
)


class Expansion(Dataset[tuple[Tensor, tuple[int, int]]]):
    """All `VERSIONS` of each image of a split, by their places.

    Image ``i``'s versions are at places ``6 i`` to ``6 i + 5``. What each one draws depends on the
    seed and its place alone, so it is one and the same image in every epoch, whatever came before.

    Args:
        split: In memory.
        transform: As evaluation sees images, so that nothing else varies.
        seed: Of the draws.

    Raises:
        DataError: If the split is streamed.

    Example:
        >>> from timm_linop.data import Augmentation, load_data, make_transforms
        >>> evaluate = make_transforms({"input_size": (1, 32, 32)}, augment=Augmentation())[1]
        >>> expansion = Expansion(load_data("digits").train, evaluate, seed=0)
        >>> image, (label, place) = expansion[5999]
        >>> len(expansion), image.shape, place
        (6000, torch.Size([1, 32, 32]), 5999)
    """

    def __init__(self, split: Split, transform: Transform, seed: int) -> None:
        if isinstance(split, Stream):
            raise DataError(
                f"{split.where} is a stream, whose images have no places, so none can keep a label "
                "of its own; leave --streaming out."
            )
        self.examples, self.seed = Examples(split, transform, seed), seed

    def __len__(self) -> int:
        return len(VERSIONS) * len(self.examples)

    def set_epoch(self, epoch: int) -> None:
        """Nothing is drawn anew."""

    def __getitem__(self, place: int) -> tuple[Tensor, tuple[int, int]]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[tuple[Tensor, tuple[int, int]]]:
        """Give ``(image, (label, place))`` of one batch, which is what a DataLoader asks for."""
        pairs = self.examples.__getitems__([place // len(VERSIONS) for place in places])
        return [
            (self._version(image, place), (label, place))
            for place, (image, label) in zip(places, pairs, strict=True)
        ]

    def _version(self, image: Tensor, place: int) -> Tensor:
        seed = np.random.SeedSequence((self.seed, place)).generate_state(1)[0]
        return VERSIONS[place % len(VERSIONS)](image, torch.Generator().manual_seed(int(seed)))


def make_expanded_loader(
    split: Split, transform: Transform, batch_size: int, *, workers: int = 0, seed: int = 0
) -> DataLoader[Any]:
    """Make training batches of all versions of a split's images, ready for ``accelerator.prepare``.

    Args:
        split: The train split of an `ImageData`, in memory.
        transform: That of evaluation.
        batch_size: Images per batch and process.
        workers: Processes that decode.
        seed: Of the order, and of what the versions draw.

    Returns:
        A loader of (images float32 [b c h w], labels and places int64 [b 2]) tuples.

    Raises:
        DataError: If the split is streamed.
    """
    expansion = Expansion(split, transform, seed)
    return batches_of(expansion, batch_size, shuffle=True, workers=workers, seed=seed)
