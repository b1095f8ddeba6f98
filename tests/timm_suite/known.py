"""Tests of timm's that do not hold yet, or cannot: name or start of it, and why.

Each is marked strictly: one that begins to pass fails the run until its line is taken away.
"""

from __future__ import annotations

# An expanded model and torch.jit.script.
SCRIPTING = "torch.jit.script takes no parametrized module; contract(model) first"


def reason_of(test: str, wide: bool) -> str | None:
    """Tell why a test of timm's is expected to fail, or None.

    Args:
        test: Its name with parameters.
        wide: Its model is an expanded twin.

    Example:
        >>> reason_of("test_model_forward_torchscript[1-linop_wide_test_vit]", wide=True)
        'torch.jit.script takes no parametrized module; contract(model) first'
    """
    return SCRIPTING if wide and "torchscript" in test else None
