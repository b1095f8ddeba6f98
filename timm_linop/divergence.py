"""Where numbers stop being numbers: the parameter, the images or the layer that is to blame."""

from __future__ import annotations

from contextlib import ExitStack
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TrainingError
from .expanded import chain_of
from .resume import Progress


def broken_parameter(model: nn.Module) -> str | None:
    """Name the first parameter or running statistic that holds NaN or infinity.

    Args:
        model: Any model.

    Returns:
        Its name; None if all are finite.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> broken_parameter(model) is None
        True
        >>> _ = model.bias.data.fill_(torch.nan)
        >>> broken_parameter(model)
        'bias'
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    # Statistics diverge like weights; masks and tables of a model may hold infinity on purpose.
    tensors |= {name: b for name, b in model.named_buffers() if "running_" in name}
    floating = {name: t.detach() for name, t in tensors.items() if t.is_floating_point()}
    if not floating:
        return None
    # One look at all of them; names are looked for only if it finds something.
    peaks = torch.stack([*map(Tensor.float, torch._foreach_norm([*floating.values()], inf))])
    broken = (~peaks.isfinite()).nonzero().flatten().tolist()
    return list(floating)[broken[0]] if broken else None


@torch.no_grad()
def blame(model: nn.Module, images: Tensor, teacher: nn.Module | None = None) -> str:
    """Tell where a loss that is no number comes from.

    Args:
        model: As it was when the loss was taken.
        images: The batch it was taken of, ``b x c x h x w``.
        teacher: Looked at last.

    Returns:
        Half a sentence that names the parameter, the images, or the first layer whose output is no
        number.

    Example:
        >>> class Log(nn.Module):
        ...     def forward(self, x):
        ...         return x.log()
        >>> blame(nn.Sequential(nn.ReLU(), Log()), torch.zeros(2, 3, 4, 4))
        "layer '1' (Log) gives numbers that are not finite"
    """
    parameter = broken_parameter(model)
    if parameter is not None:
        return f"{_spoken(parameter)} is not finite any more"
    if not images.isfinite().all():
        return "the images hold numbers that are not finite"
    layer = _first_broken_layer(model, images)
    if layer is not None:
        return f"layer {layer} gives numbers that are not finite"
    layer = _first_broken_layer(teacher, images) if teacher is not None else None
    if layer is not None:
        return f"layer {layer} of the teacher gives numbers that are not finite"
    return "every layer's output is finite, so the loss itself is too large"


def diverged(what: str, progress: Progress, newest: str | None, rate: str) -> TrainingError:
    """Say that a training cannot go on, and what to do.

    Args:
        what: Half a sentence: what is not finite.
        progress: How far it came; the step that broke is not counted.
        newest: Its newest checkpoint, if there is one.
        rate: Flag of its learning rate.

    Example:
        >>> raise diverged("the loss is nan", Progress(epoch=2, updates=7), None, "--lr")
        Traceback (most recent call last):
        ...
        timm_linop.errors.TrainingError: training has diverged at step 8, in epoch 3: the loss ...
    """
    kept = f"the last good one is kept, {newest}" if newest else "there is none yet"
    return TrainingError(
        f"training has diverged at step {progress.updates + 1}, in epoch {progress.epoch + 1}: "
        f"{what}. No checkpoint of this state was written; {kept}. --resume would come here again: "
        f"start anew, in another --output, with a lower {rate}, --clip-grad, or more "
        "--warmup-epochs."
    )


def _spoken(parameter: str) -> str:
    """A factor by its layer."""
    layer, chained, factor = parameter.partition(".parametrizations.weight.original")
    return f"factor {factor} of layer {layer!r}" if chained else repr(parameter)


def _first_broken_layer(model: nn.Module, images: Tensor) -> str | None:
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"{name!r} ({type(module).__name__})")

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            leaf = chain_of(module) is not None or not any(module.children())
            if leaf and "parametrizations" not in name:
                handle = module.register_forward_hook(look(name))
                hooks.callback(handle.remove)
        model(images)
    return found[0] if found else None
