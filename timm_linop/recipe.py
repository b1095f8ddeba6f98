"""Recipe: every setting of a run, as one tree of frozen dataclasses.

The fields are timm's own flags wherever timm has one (``opt lr weight_decay sched epochs ...``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .data import Augmentation
from .errors import RecipeError


@dataclass(frozen=True)
class ModelConfig:
    """The model to train.

    Attributes:
        model: timm architecture: the one to train dense, or the one a bare state dict in --pruned
            belongs to.
        pruned: Slim model to fine-tune: a folder of prune.py or train.py, a checkpoint file, or
            hf-hub:user/repo. None trains --model dense.
        pretrained: Start a dense model from timm's pretrained weights.
        reinit: Keep the structure only and draw new weights (from scratch, ExpandNets, vanilla
            distillation).
        in_chans: Input channels; None takes the model's own.
        img_size: Image size in pixels; None takes the model's own.
        drop: Dropout rate of the classifier.
        drop_path: Stochastic depth rate; None takes the model's own.
        model_kwargs: Further arguments of the architecture, such as ``output_stride=8``.
    """

    model: str | None = None
    pruned: str | None = None
    pretrained: bool = False
    reinit: bool = False
    in_chans: int | None = None
    img_size: int | None = None
    drop: float = 0.0
    drop_path: float | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpandConfig:
    """Linear over-parameterisation.

    Attributes:
        rate: Expansion rate; 0 trains the slim layers themselves. None is 3 with --pruned, else 0.
        init: How factors are drawn: orthogonal, normal or balanced.
        include: Names or patterns of the only layers to expand.
        exclude: Names or patterns of layers to leave alone.
    """

    rate: float | None = None
    init: str = "orthogonal"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None


@dataclass(frozen=True)
class DistillConfig:
    """Similarity-preserving distillation.

    Attributes:
        teacher: Dense teacher: a timm name, local-dir:FOLDER or hf-hub:user/repo.
        gamma: Weight of the distillation loss; 0 leaves it out. None is 3000 with --pruned, else 0.
        pairs: Layers to compare: all, blocks, stages, last, or layer names.
        reduction: mean or sum over the pairs.
        sub_batch: Images per Gram matrix, at most.
    """

    teacher: str | None = None
    gamma: float | None = None
    pairs: tuple[str, ...] = ("blocks",)
    reduction: str = "mean"
    sub_batch: int = 32


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are fed.

    Attributes:
        dataset: digits, imagefolder:DIR, idx:DIR, parquet:GLOB, or a Hub dataset id.
        image_column: Column of the images, where it is not plain.
        label_column: Column of the labels, where it is not plain.
        mean: Per-channel mean to normalise with; None takes the model's own.
        std: Per-channel standard deviation, likewise.
        interpolation: How images are resized (bicubic, bilinear...); None takes the model's own.
        crop_pct: Part of the image that evaluation keeps; None takes the model's own.
        batch_size: Images per step and process.
        workers: Processes that load images.
    """

    dataset: str = "digits"
    image_column: str | None = None
    label_column: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    batch_size: int = 128
    workers: int = 0


@dataclass(frozen=True)
class OptimConfig:
    """Loss and optimiser, under timm's names.

    Attributes:
        opt: Any optimiser of timm.optim.
        lr: Learning rate.
        momentum: Momentum, where the optimiser has one.
        weight_decay: Weight decay, on the factors of expanded layers too.
        clip_grad: Largest gradient norm; None does not clip.
        smoothing: Label smoothing.
        mixup: Mixup alpha; 0 leaves it out.
        cutmix: CutMix alpha; 0 leaves it out.
        model_ema: Keep and ship an exponential moving average of the weights.
        model_ema_decay: Its decay per step.
    """

    opt: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 2e-5
    clip_grad: float | None = None
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    model_ema: bool = False
    model_ema_decay: float = 0.999


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, under timm's names.

    Attributes:
        epochs: Passes over the training images.
        sched: One of timm's schedules: cosine, multistep, step, poly...
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Learning rate it starts from.
        min_lr: Learning rate that cosine ends at.
        decay_milestones: Epochs at which multistep multiplies the rate by --decay-rate.
        decay_rate: That factor.
    """

    epochs: int = 100
    sched: str = "cosine"
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    min_lr: float = 0.0
    decay_milestones: tuple[int, ...] = (60, 100, 120)
    decay_rate: float = 0.1


@dataclass(frozen=True)
class RunConfig:
    """Where it goes.

    Attributes:
        output: Folder for everything the run leaves; it must be new or empty.
        seed: Seed of weights, factors, shuffling and augmentation.
        push_to_hub: Repo to push the slim model to, user/repo.
        hub_private: Create that repo private.
    """

    output: str = "runs/slim"
    seed: int = 42
    push_to_hub: str | None = None
    hub_private: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """States to go on from.

    Attributes:
        resume: Run folder to go on with after any stop; its own recipe holds, so no other flags.
        checkpoint_every: Steps between two checkpoints; 0 writes them at the ends of epochs only.
        checkpoint_hist: Newest checkpoints to keep.
    """

    resume: str | None = None
    checkpoint_every: int = 0
    checkpoint_hist: int = 2


@dataclass(frozen=True)
class PruneConfig:
    """What to remove.

    Attributes:
        weights: Trained weights of --model: a folder, a checkpoint file, or "pretrained".
        ratio: Fraction of each layer's channels to remove.
        round_to: Keep a multiple of this many channels; 1 keeps any number.
    """

    weights: str | None = None
    ratio: float = 0.5
    round_to: int = 8


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
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def effective(self) -> Recipe:
        """Fill what follows from other settings, and refuse contradictions.

        Raises:
            RecipeError: If settings contradict each other.

        Example:
            >>> Recipe(ModelConfig(pruned="runs/pruned")).effective()
            Traceback (most recent call last):
            ...
            timm_linop.errors.RecipeError: gamma=3000 needs a teacher; name the dense model ...
        """
        slim = self.model.pruned is not None
        rate, gamma = self.expand.rate, self.distill.gamma
        rate = (3 if slim else 0) if rate is None else rate
        gamma = (3000 if slim else 0) if gamma is None else gamma
        if not slim and not self.model.model:
            raise RecipeError(
                "nothing to train: pass --pruned FOLDER to fine-tune a slim model, or --model NAME "
                "to train a dense one."
            )
        if gamma and not self.distill.teacher:
            raise RecipeError(
                f"gamma={gamma:g} needs a teacher; name the dense model with --teacher, or pass "
                "--gamma 0 to train without one."
            )
        _check_counts(
            (1, "epochs", self.schedule.epochs),
            (1, "batch_size", self.data.batch_size),
            (0, "checkpoint_every", self.checkpoint.checkpoint_every),
            (1, "checkpoint_hist", self.checkpoint.checkpoint_hist),
        )
        if self.optim.lr <= 0 or gamma < 0:
            raise RecipeError(f"lr={self.optim.lr} must be above 0 and gamma={gamma} not below 0.")
        return replace(
            self,
            expand=replace(self.expand, rate=rate),
            distill=replace(self.distill, gamma=gamma),
        )


@dataclass(frozen=True)
class PruneRecipe:
    """All settings of ``prune.py``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)


def _check_counts(*counts: tuple[int, str, int]) -> None:
    for least, name, value in counts:
        if value < least:
            raise RecipeError(f"{name}={value}: at least {least} is needed.")
