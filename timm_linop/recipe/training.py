"""How it is trained: loss, optimiser, schedule, arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field


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
class ComputeConfig:
    """How a step is computed; precision is accelerate's (``--mixed_precision bf16``).

    Attributes:
        grad_accum_steps: Batches whose gradients add up to one step of the optimiser.
        grad_checkpointing: Compute activations twice to save memory, where timm's model can.
        channels_last: Keep images and convolutions in channels-last order.
        torchcompile: Compile the model with this backend of torch.compile; bare, inductor.
        sync_bn: Share batch statistics among the processes (on GPUs).
    """

    grad_accum_steps: int = 1
    grad_checkpointing: bool = False
    channels_last: bool = False
    torchcompile: str | None = field(default=None, metadata={"bare": "inductor"})
    sync_bn: bool = False
