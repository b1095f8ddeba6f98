"""Ship a slim model: a folder in timm's own layout, and one atomic commit to the Hub."""

from timm_linop.hub.access import check_metadata, check_write_access
from timm_linop.hub.pushing import Shipment, push
from timm_linop.hub.saving import CARD, FIGURES, check_output, save

__all__ = [
    "CARD",
    "FIGURES",
    "Shipment",
    "check_metadata",
    "check_output",
    "check_write_access",
    "push",
    "save",
]
