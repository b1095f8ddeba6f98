"""From PIL images of any size and mode to normalised tensors, by timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import PIL.Image
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import Compose

from timm_linop.errors import DataError, RecipeError

Transform = Callable[[PIL.Image.Image], torch.Tensor]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the fields are the flags of timm's ``train.py``.

    Attributes:
        no_aug: Only resize to the input size, ignoring all fields below.
        scale: Smallest and largest part of the image's area that a random crop keeps;
            timm's default is (0.08, 1.0), or (0.8, 1.0) in the rkr modes.
        ratio: Smallest and largest aspect ratio of a random crop; timm's default is (3/4, 4/3),
            or (0.9, 1/0.9) in the rkr modes.
        hflip: Probability of a flip left to right; 0 for digits, letters and the like.
        vflip: Probability of a flip upside down.
        color_jitter: Largest relative change of brightness, contrast and saturation; ignored
            under most ``aa`` policies, as in timm.
        color_jitter_prob: Probability of that change; None changes every image.
        grayscale_prob: Probability that an image loses its colours.
        gaussian_blur_prob: Probability that an image is blurred, over 23 pixels.
        aa: Policy of AutoAugment, RandAugment, AugMix or 3-Augment in timm's notation, such as
            "rand-m9-mstd0.5-inc1", "original", "augmix-m5", "3a".
        reprob: Probability that random rectangles are erased.
        remode: What they are filled with: "pixel" (noise), "rand" (one random colour) or "const".
        recount: Rectangles, at most.
        train_crop_mode: How training crops are drawn: "rrc" (random resized crop, the default),
            "rkrc" or "rkrr" (resize keeping the ratio, then centre or random crop).
        train_interpolation: How training images are resized: bicubic, bilinear... or random; None
            takes that of evaluation.

    Raises:
        RecipeError: A field is out of range.

    Example:
        >>> Augmentation(hflip=0.0, aa="rand-m9-mstd0.5-inc1").reprob
        0.0
        >>> Augmentation(hflip=50)
        Traceback (most recent call last):
        timm_linop.errors.RecipeError: hflip=50 is no probability; give a number from 0 to 1.
    """

    no_aug: bool = False
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float | None = 0.4
    color_jitter_prob: float | None = None
    grayscale_prob: float = 0.0
    gaussian_blur_prob: float = 0.0
    aa: str | None = None
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    train_crop_mode: str | None = None
    train_interpolation: str | None = None

    def __post_init__(self) -> None:
        for field in _PROBABILITIES:
            value = getattr(self, field)
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"{field}={value} is no probability; give a number from 0 to 1.")
        for field in ("scale", "ratio"):
            value = getattr(self, field)
            if value is not None and not 0 < value[0] <= value[1]:
                raise RecipeError(f"{field}={value} is no range; give 0 < smallest <= largest.")
        if self.color_jitter is not None and self.color_jitter < 0:
            raise RecipeError(f"color_jitter={self.color_jitter} is negative; give 0 or more.")
        if self.recount < 1:
            raise RecipeError(f"recount={self.recount} is no number of rectangles; give 1 or more.")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in (None, *choices):
                raise RecipeError(
                    f"{field}={getattr(self, field)!r} is unknown; give {', '.join(choices[:-1])} "
                    f"or {choices[-1]}."
                )


_PROBABILITIES = ["hflip", "vflip", "reprob"]
_PROBABILITIES += ["color_jitter_prob", "grayscale_prob", "gaussian_blur_prob"]
_PILLOWS = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
_CHOICES = {
    "remode": ["pixel", "rand", "const"],
    "train_crop_mode": ["rrc", "rkrc", "rkrr"],
    "train_interpolation": ["random", *_PILLOWS],
}


def make_transforms(
    data_config: dict[str, Any], *, augment: Augmentation
) -> tuple[Transform, Transform]:
    """Ask timm for the transforms of training and of evaluation.

    Both take a PIL image of any size, also one smaller than the input, convert it to the model's
    channels, resize, crop and normalise it. Evaluation resizes the shorter side to
    ``size / crop_pct`` and cuts the centre out, so with ``crop_pct`` below 1 the rim is lost;
    ``no_aug`` resizes height and width to the input size.

    Args:
        data_config: What ``timm.data.resolve_model_data_config(model)`` gives: input_size
            (channels, height, width), interpolation, mean, std, crop_pct, crop_mode. timm reads
            it off the pretrained weights: for a model made with other ``in_chans`` or
            ``img_size``, set ``input_size``. Where mean and std are not one per channel, their
            average stands for each channel.
        augment: How training images are varied.

    Returns:
        Two callables from a PIL image to a float32 tensor [c h w]; they raise a DataError for an
        image that cannot be given these channels without loss (see `check_fits`).

    Raises:
        DataError: ``data_config`` has no such input_size, or timm refuses it.
        RecipeError: What ``augment`` asks for cannot be done to images of this size.

    Example:
        >>> from timm_linop.data import load_data
        >>> config = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
        >>> train, evaluate = make_transforms(config, augment=Augmentation(hflip=0.0))
        >>> evaluate(load_data("digits").test[0]["image"]).shape
        torch.Size([1, 32, 32])
    """
    size = tuple(data_config.get("input_size", ()))
    if len(size) != 3 or size[0] not in _MODES:
        raise DataError(
            f"input_size is {size}, not (channels, height, width) with 1, 3 or 4 channels; set "
            "data_config['input_size'] to what the model reads."
        )
    optional = ("interpolation", "crop_pct", "crop_mode")
    config = {key: data_config[key] for key in optional if key in data_config}
    for key, default in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
        values = data_config.get(key, default)
        config[key] = values if len(values) == size[0] else (fmean(values),) * size[0]
    _check_possible(augment, size)
    try:
        train = create_transform(size, is_training=True, **{**config, **_as_timm(augment)})
        evaluate = create_transform(size, **config)
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(
            f"timm makes no transforms of {data_config} and {augment}: {error}"
        ) from error
    channels = _Channels(size[0])
    return Compose([channels, train]), Compose([channels, evaluate])


def _as_timm(augment: Augmentation) -> dict[str, Any]:
    """The arguments of timm's create_transform, which has other names than its ``train.py``."""
    varied = asdict(augment)
    for ours, timms in _NAMES.items():
        varied[timms] = varied.pop(ours)
    interpolation = varied.pop("train_interpolation")
    if interpolation and not augment.no_aug:
        varied["interpolation"] = interpolation
    return varied


_NAMES = {"aa": "auto_augment", "reprob": "re_prob", "remode": "re_mode", "recount": "re_count"}


def _check_possible(augment: Augmentation, size: tuple[int, ...]) -> None:
    """Refuse what torchvision would refuse in the middle of an epoch, at the first such draw."""
    if augment.no_aug:
        return
    if augment.grayscale_prob and size[0] == 4:
        raise RecipeError(
            f"grayscale_prob={augment.grayscale_prob}: images with an alpha channel cannot be made "
            "grey; leave it out, or create the model with in_chans=3."
        )
    if augment.gaussian_blur_prob and min(size[1:]) < 12:  # 23 pixels, mirrored at the rim
        raise RecipeError(
            f"gaussian_blur_prob={augment.gaussian_blur_prob}: timm's blur is 23 pixels wide, too "
            f"wide for images of {size[1]}x{size[2]}; leave it out, or give a larger --img-size."
        )


def channel_problem(mode: str, in_chans: int) -> str | None:
    """Say why images of a PIL mode cannot be given so many channels, or None if they can."""
    if in_chans not in _MODES:
        return f"images have 1, 3 or 4 channels, but the model reads {in_chans}; set in_chans=3."
    if mode.startswith(("I", "F")):
        return (
            f"images of mode {mode!r} hold 16-bit, 32-bit or float values, which PIL would clip "
            "at 255; rescale them to 0..255 and save them as 8-bit images."
        )
    if in_chans == 1 and mode not in _GREY:
        return (
            f"images of mode {mode!r} would lose their colours in a model with in_chans=1; "
            "create the model with in_chans=3, or convert the images to grey."
        )
    if in_chans == 4 and mode != "RGBA":
        return f"images of mode {mode!r} have no alpha channel; create the model with in_chans=3."
    return None


class _Channels:
    """Give one image the model's channels: a data set may mix grey, palette and colour."""

    def __init__(self, in_chans: int) -> None:
        self.in_chans = in_chans

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if problem := channel_problem(image.mode, self.in_chans):
            raise DataError(problem)
        mode = _MODES[self.in_chans]
        return image if image.mode == mode else image.convert(mode)
