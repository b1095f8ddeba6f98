"""Dense to slim: one door, `prune`, over coupled channel groups."""

from .door import prune, pruned
from .kept_scores import KeptScores
from .report import GroupReport, Pruned, PruningReport
from .training import Training, check_penalty

__all__ = [
    "GroupReport",
    "KeptScores",
    "Pruned",
    "PruningReport",
    "Training",
    "check_penalty",
    "prune",
    "pruned",
]
