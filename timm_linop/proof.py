"""A stored proof: what a slim model said to one seeded image, so that each reload can be checked.

A rebuild can go wrong silently: two heads of 16 channels and one of 32 have the same shapes. So a
slim folder's config.json carries a seed, an image size and the logits.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .probing import image_size
from .wire import expect, plain

# Logits of one image that are kept; a wrong rebuild shows in any of them.
_KEPT = 64
# Machines round differently: float32 logits agree to about 1e-5 of the largest one.
_TOLERANCE = 1e-3
_MAX_NUMBERS = 2**24


def prove(model: nn.Module) -> dict[str, Any]:
    """Run one seeded image through a slim model.

    Args:
        model: A slim timm model, with its weights.

    Returns:
        JSON-ready: ``probe`` with ``seed``, ``input_size`` (channels, height, width) and the first
        ``logits``; empty if they are not finite, which proves nothing.

    Example:
        >>> import timm
        >>> sorted(prove(timm.create_model("test_resnet", num_classes=3))["probe"])
        ['input_size', 'logits', 'seed']
    """
    size = list(image_size(model))
    logits = _logits(copy.deepcopy(model).cpu().float(), 0, size)
    if not logits.isfinite().all():
        return {}
    return {"probe": {"seed": 0, "input_size": size, "logits": logits.tolist()}}


def check(model: nn.Module, proof: Any, name: str) -> None:
    """Refuse a reloaded model that does not say what the saved one said.

    Args:
        model: The reloaded slim model, in float32 on the CPU.
        proof: What `prove` wrote; from a file that nobody vouches for.
        name: What the model is called in the message.

    Raises:
        CheckpointError: If the logits differ, or the proof is malformed.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet", num_classes=3)
        >>> check(model, prove(model)["probe"], "test_resnet")
    """
    seed, size, expected = _read(proof)
    got = _logits(model, seed, size)
    largest = expected.abs().max().item()
    if got.shape != expected.shape or not (got - expected).abs().max() <= _TOLERANCE * largest:
        raise CheckpointError(
            f"{name}: the reloaded model's logits are not those that were saved with it "
            f"({_few(got)} instead of {_few(expected)}): its structure or weights were changed "
            "since. Save the model again with timm_linop.save()."
        )


def _read(proof: Any) -> tuple[int, list[int], Tensor]:
    proof = expect(proof, dict, "probe")
    seed, size, logits = (proof.get(key) for key in ("seed", "input_size", "logits"))
    counts = isinstance(seed, int) and 0 <= seed < 2**32 and isinstance(plain(size), list)
    image = counts and len(size) == 3 and min(size) > 0 and math.prod(size) <= _MAX_NUMBERS
    if not image or not isinstance(logits, list) or not 0 < len(logits) <= _KEPT:
        raise CheckpointError(
            "config.json: probe holds no seed, image size and logits; save the model again."
        )
    if not all(isinstance(logit, float) and math.isfinite(logit) for logit in logits):
        raise CheckpointError("config.json: probe's logits are no numbers; save the model again.")
    return seed, size, torch.tensor(logits)


@torch.no_grad()
def _logits(model: nn.Module, seed: int, size: list[int]) -> Tensor:
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(seed))
    training = model.training
    try:
        output = model.eval()(image)
    except Exception as error:  # a changed file may ask for an image that the model cannot take
        raise CheckpointError(
            f"the model cannot take the {'x'.join(map(str, size))} image that it was saved with "
            f"({type(error).__name__}: {str(error)[:100]}); save it again."
        ) from error
    finally:
        model.train(training)
    while not isinstance(output, Tensor):  # several heads
        output = output[0]
    return output.flatten()[:_KEPT]


def _few(logits: Tensor) -> str:
    return ", ".join(f"{x:.3g}" for x in logits[:3].tolist())
