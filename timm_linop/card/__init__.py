"""The model card: plain data in, Markdown out. Its words are in ``hub_cards/model_card.md.j2``."""

from timm_linop.card.arms import ARMS, Methods, label, methods_of
from timm_linop.card.data import (
    CardData,
    ClassResult,
    Contraction,
    Dataset,
    Figure,
    Pruning,
    Result,
)
from timm_linop.card.record import read_record, write_record
from timm_linop.card.rendering import free_text, render

__all__ = [
    "ARMS",
    "CardData",
    "ClassResult",
    "Contraction",
    "Dataset",
    "Figure",
    "Methods",
    "Pruning",
    "Result",
    "free_text",
    "label",
    "methods_of",
    "read_record",
    "render",
    "write_record",
]
