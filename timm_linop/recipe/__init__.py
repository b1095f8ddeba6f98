"""Recipe: every setting of a run, as one tree of frozen dataclasses.

The fields are timm's own flags wherever timm has one (``opt lr weight_decay sched epochs ...``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from timm_linop.data import Augmentation
from timm_linop.errors import RecipeError
from timm_linop.recipe.named import NamedConfig
from timm_linop.recipe.optim import OptimConfig
from timm_linop.recipe.pruning import ADMMConfig, PruneConfig, TPPConfig
from timm_linop.recipe.refine import RefineConfig
from timm_linop.recipe.running import (
    CheckpointConfig,
    DataConfig,
    RunConfig,
    SnapshotConfig,
    WatchConfig,
)
from timm_linop.recipe.schedule import ScheduleConfig
from timm_linop.recipe.training import ComputeConfig
from timm_linop.recipe.what import DenseConfig, DistillConfig, ExpandConfig, ModelConfig

__all__ = [
    "ADMMConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "DataConfig",
    "DenseConfig",
    "DistillConfig",
    "ExpandConfig",
    "ModelConfig",
    "NamedConfig",
    "OptimConfig",
    "PruneConfig",
    "PruneRecipe",
    "Recipe",
    "RefineConfig",
    "RunConfig",
    "ScheduleConfig",
    "SnapshotConfig",
    "TPPConfig",
    "WatchConfig",
]


@dataclass(frozen=True)
class Recipe:
    """All settings of ``train.py``, one dataclass a group.

    Example:
        >>> Recipe(ModelConfig(model="resnet18")).effective().expand.rate
        0
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    expand: ExpandConfig = field(default_factory=ExpandConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: Augmentation = field(default_factory=Augmentation)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    run: RunConfig = field(default_factory=RunConfig)
    named: NamedConfig = field(default_factory=NamedConfig)

    def effective(self) -> Recipe:
        """Fill what follows from other settings, and refuse contradictions.

        Raises:
            RecipeError: If settings contradict each other.

        Example:
            >>> Recipe(ModelConfig(pruned="runs/pruned")).effective()
            Traceback (most recent call last):
            ...
            timm_linop.errors.RecipeError: kd_weight=1 needs a teacher (distillation is ...
        """
        evaluated = self.watch.eval_only is not None
        slim = self.model.pruned is not None and not evaluated
        output = self.run.output or (None if evaluated else "runs/slim")
        filled = replace(
            self,
            expand=self.expand.effective(slim),
            distill=self.distill.effective(slim),
            schedule=self.schedule.effective(),
            run=replace(self.run, output=output),
        )
        filled._check_model()
        filled._check_teacher()
        filled._check_refinement()
        filled._check_numbers()
        return filled

    def _check_model(self) -> None:
        if self.model.pruned is None and not self.model.model:
            raise RecipeError(
                "no model: pass --pruned FOLDER to fine-tune a slim one, or --model NAME for a "
                "dense one."
            )
        if self.watch.eval_only not in (None, "train", "validation", "test"):
            raise RecipeError(
                f"eval_only={self.watch.eval_only!r}: evaluate train, validation or test."
            )
        if self.watch.eval_only and not (self.model.pruned or self.model.pretrained):
            raise RecipeError(
                f"--eval-only of {self.model.model} would measure random weights; pass --pruned "
                "FOLDER, or --pretrained."
            )

        if self.watch.compare and (self.model.pruned is None or self.model.reinit):
            raise RecipeError(
                "--compare holds runs against each other that start from the same pruned weights; "
                "pass --pruned without --reinit, or leave --compare out."
            )

    def _check_teacher(self) -> None:
        distill = self.distill
        wanted = f"gamma={distill.gamma:g}" if distill.gamma else ""
        wanted = wanted or (f"kd_weight={distill.kd_weight:g}" if distill.kd_weight else "")
        if wanted and not distill.teacher:
            raise RecipeError(
                f"{wanted} needs a teacher (distillation is the default with --pruned); name the "
                "dense model with --teacher, or pass --kd-weight 0 --gamma 0 to train without one "
                "(and --rate 0 for plain fine-tuning)."
            )

    def _check_refinement(self) -> None:
        if not self.refine.refine_epochs:
            return
        if not self.distill.asked:
            raise RecipeError(
                f"refine_epochs={self.refine.refine_epochs} refines labels that a teacher gives; "
                "name it with --teacher and learn from it before, with --kd-weight or --gamma."
            )
        if self.data.streaming:
            raise RecipeError(
                "--streaming and --refine-epochs do not go together: each image keeps a label of "
                "its own, so it must have a place; leave one of them out."
            )

    def _check_numbers(self) -> None:
        distill = self.distill
        _check_counts(
            (1, "batch_size", self.data.batch_size),
            (1, "grad_accum_steps", self.compute.grad_accum_steps),
            (0, "checkpoint_every", self.checkpoint.checkpoint_every),
            (1, "checkpoint_hist", self.checkpoint.checkpoint_hist),
            (0, "push_every", self.snapshots.push_every),
        )
        if self.snapshots.push_every and not self.run.push_to_hub:
            raise RecipeError("push_every needs a repo to push to; name it with --push-to-hub.")
        if self.optim.mixes and self.data.batch_size < 2:
            raise RecipeError("mixup and cutmix pair images; --batch-size must be 2 or more.")
        for name, value in (("lr", self.optim.lr), ("kd_temperature", distill.kd_temperature)):
            if value <= 0:
                raise RecipeError(f"{name}={value:g}: it must be above 0.")
        for name in ("task_weight", "kd_weight", "gamma"):
            value = getattr(distill, name)
            if value < 0:
                raise RecipeError(f"{name}={value:g}: it must not be below 0.")
        if not distill.task_weight and not distill.asked:
            raise RecipeError(
                "task_weight=0 without a teacher leaves nothing to learn; give a weight, or "
                "distil with --kd-weight or --gamma."
            )


@dataclass(frozen=True)
class PruneRecipe:
    """All settings of ``prune.py``; those of training are of the methods that train.

    Example:
        >>> PruneRecipe(prune=PruneConfig(method="tpp")).training().schedule.sched
        'constant'
    """

    model: DenseConfig = field(default_factory=DenseConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    admm: ADMMConfig = field(default_factory=ADMMConfig)
    tpp: TPPConfig = field(default_factory=TPPConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: Augmentation = field(default_factory=Augmentation)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(epochs=30, sched="constant", warmup_epochs=0)
    )
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def effective(self) -> PruneRecipe:
        """Fill what follows from other settings.

        Raises:
            RecipeError: If settings contradict each other.
        """
        if self.optim.model_ema:
            raise RecipeError(
                "--model-ema ships an average of the weights, and pruning acts on the weights "
                "themselves; leave it out."
            )
        self._check_heeded()
        return replace(self, run=replace(self.run, output=self.run.output or "runs/pruned"))

    def _check_heeded(self) -> None:
        """Refuse settings that the method would not heed, as one might count on them."""
        method, usual = self.prune.method, PruneRecipe()
        groups = {"admm": method == "admm", "tpp": method == "tpp"}
        groups |= dict.fromkeys(("optim", "schedule", "compute"), self.prune.trains)
        for name, heeded in groups.items():
            own, other = asdict(getattr(self, name)), asdict(getattr(usual, name))
            given = [setting for setting in own if own[setting] != other[setting]]
            if given and not heeded:
                raise RecipeError(
                    f"{given[0]}={own[given[0]]} is not heeded by --method {method}, which "
                    f"{'trains otherwise' if self.prune.trains else 'does not train'}; leave it "
                    "out, or take another method (docs/pruning.md tells which is which)."
                )

    def training(self) -> Recipe:
        """What the training loop is to heed of it."""
        dense = ModelConfig(self.model.model, in_chans=self.model.in_chans)
        return Recipe(
            model=replace(dense, img_size=self.model.img_size),
            data=self.data,
            augment=self.augment,
            optim=self.optim,
            schedule=self.schedule.effective(),
            compute=self.compute,
            checkpoint=self.checkpoint,
            run=self.run,
        )


def _check_counts(*counts: tuple[int, str, int]) -> None:
    for least, name, value in counts:
        if value < least:
            raise RecipeError(f"{name}={value}: at least {least} is needed.")
