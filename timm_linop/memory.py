"""How much memory a file may ask for: reckoned on the meta device before any is taken."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .architecture import tensors_of
from .errors import CheckpointError
from .layers import layers_of

VARIABLE = "TIMM_LINOP_MAX_BYTES"
_DEFAULT = 4 * 2**30
# What a module is counted as beside its tensors, generously: a million tiny blocks are not free,
# and are refused long before they are built. timm's own have up to 2,300.
_PER_MODULE = 2**18


def limit() -> int:
    """Tell how many bytes a file may ask for: ``TIMM_LINOP_MAX_BYTES``, or 4 GiB.

    Raises:
        CheckpointError: If the variable is no number.

    Example:
        >>> limit()
        4294967296
    """
    told = os.environ.get(VARIABLE) or str(_DEFAULT)
    if not (told.isascii() and told.isdigit()):
        raise CheckpointError(f"{VARIABLE}={told[:80]!r} is no number of bytes; 8589934592 is one.")
    return int(told)


def check_bytes(needed: int, what: str) -> None:
    """Refuse what would take more memory than a file may ask for.

    Args:
        needed: Bytes.
        what: What would take them.

    Raises:
        CheckpointError: If they are over `limit`.

    Example:
        >>> check_bytes(10**12, "weights.pth")
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: weights.pth would take over 4,294,967,296 bytes ...
    """
    if needed > limit():
        raise CheckpointError(
            f"{what} would take over {limit():,} bytes of memory, the most that a file may ask "
            f"for; if you trust it, raise the limit: {VARIABLE}={min(2 * needed, 2**63)}."
        )


def check_model(base: str, args: Mapping[str, Any]) -> None:
    """Refuse an architecture that is larger than a file may ask for, before it takes its memory.

    Args:
        base: Its timm name.
        args: What timm would build it with.

    Raises:
        CheckpointError: If its tensors and modules are over `limit`.

    Example:
        >>> check_model("test_resnet", {"num_classes": 5})
        >>> check_model("test_resnet", {"num_classes": 10**8})
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: test_resnet as this file asks for it would take over ...
    """
    what = f"{base} as this file asks for it"
    modules, thread = 0, threading.get_ident()

    def count(_module: nn.Module, _name: str, _child: nn.Module) -> None:
        nonlocal modules
        if threading.get_ident() == thread:
            modules += 1
            check_bytes(modules * _PER_MODULE, what)

    with register_module_module_registration_hook(count), torch.device("meta"):
        model = timm.create_model(base, **args)
    tensors = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(model))
    check_bytes(tensors + modules * _PER_MODULE, what)


def check_expansion(model: nn.Module, rate: float) -> None:
    """Refuse an expansion whose factors are larger than a file may ask for.

    Args:
        model: A slim model.
        rate: Its expansion rate, which a file may name.

    Raises:
        CheckpointError: If they are over `limit`.

    Example:
        >>> check_expansion(nn.Linear(1000, 1000), 3)
        >>> check_expansion(nn.Linear(1000, 1000), 1000)
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: Linear expanded at rate 1000 would take over ...
    """
    numbers = sum(_factors(layer, math.ceil(rate)) for _, layer in layers_of(model))
    check_bytes(4 * numbers, f"{type(model).__name__} expanded at rate {rate}")


def _factors(layer: nn.Module, rate: int) -> int:
    weight: Any = layer.weight
    groups = getattr(layer, "groups", 1)
    n, m = weight.shape[0] // groups, weight.shape[1]
    core = weight.numel() // (n * m * groups)
    return groups * rate * (m * m + rate * n * m * core + n * n)
