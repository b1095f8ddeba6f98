"""How a step is computed."""

from __future__ import annotations

from dataclasses import dataclass, field


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
