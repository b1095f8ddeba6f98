"""timm_linop: fine-tune pruned timm models by linear over-parameterisation.

Importing it registers ``linop_X`` in timm for every architecture X.

    import timm, timm_linop
    model = timm.create_model("linop_mobilenetv2_050", pruned="runs/pruned")  # exact wide twin
    timm_linop.contract(model)                                             # slim again
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .expand import audit, contract, expand
from .once import composed_once
from .registry import register_twins
from .structure import Structure

if TYPE_CHECKING:
    from .distill import SimilarityPreservingLoss
    from .hub import push, save
    from .loading import load
    from .pruning import prune

__all__ = [
    "SimilarityPreservingLoss",
    "Structure",
    "audit",
    "composed_once",
    "contract",
    "expand",
    "load",
    "prune",
    "push",
    "save",
]
__version__ = "0.1.0"

# Found when first asked for, so that `import timm_linop` costs little beside `import timm`.
_LATER = {"SimilarityPreservingLoss": "distill", "load": "loading", "prune": "pruning"}
_LATER |= {"push": "hub", "save": "hub"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "errors"])


register_twins()
