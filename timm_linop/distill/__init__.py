"""Distillation: similarity-preserving (SP-KD), and by logits (KD).

teacher --taps--> Gram matrices of paired layers --SP-KD--> loss
--logits-------------------------------- KD ------> loss
"""

from timm_linop.distill.logits import distill_logits
from timm_linop.distill.loss import PAIRS, SimilarityPreservingLoss
from timm_linop.distill.pairs import pair_up, paired_layers
from timm_linop.distill.taps import Taps
from timm_linop.distill.teacher import Teacher

__all__ = [
    "PAIRS",
    "SimilarityPreservingLoss",
    "Taps",
    "Teacher",
    "distill_logits",
    "pair_up",
    "paired_layers",
]
