"""Dense to slim: one door, `prune`, over coupled channel groups."""

from .door import prune, pruned
from .report import GroupReport, Pruned, PruningReport
from .training import Training

__all__ = ["GroupReport", "Pruned", "PruningReport", "Training", "prune", "pruned"]
