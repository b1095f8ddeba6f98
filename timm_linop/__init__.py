"""timm_linop: fine-tune pruned timm models by linear over-parameterisation.

Importing it registers ``linop_X`` in timm for every architecture X.

    import timm, timm_linop
    model = timm.create_model("linop_mobilenetv2", pruned="runs/pruned")   # exact wide twin
    timm_linop.contract(model)                                             # slim again
"""

from .expand import audit, contract, expand
from .registry import register_twins
from .structure import Structure

__all__ = ["Structure", "audit", "contract", "expand"]
__version__ = "0.1.0"

register_twins()
