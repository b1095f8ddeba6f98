"""A model made ready for how its steps are to be computed."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from timm.layers import convert_sync_batchnorm
from torch import nn

from .errors import RecipeError
from .recipe import ComputeConfig, Recipe


def arranged(model: Any, compute: ComputeConfig, accelerator: Accelerator) -> nn.Module:
    """Let a model compute its activations twice, and share batch statistics, as asked.

    Args:
        model: Changed in place.
        compute: What is asked.
        accelerator: Tells whether there are other processes.

    Returns:
        The model; another object only if it is one single batch normalisation.

    Raises:
        RecipeError: If timm's model cannot do it.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> arranged(model, ComputeConfig(grad_checkpointing=True), Accelerator(cpu=True))
        Traceback (most recent call last):
        ...
        timm_linop.errors.RecipeError: timm's Linear cannot compute its activations twice; ...
    """
    if compute.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise RecipeError(
                f"timm's {type(model).__name__} cannot compute its activations twice; leave "
                "--grad-checkpointing out."
            ) from error
    if compute.sync_bn and accelerator.num_processes > 1:
        model = convert_sync_batchnorm(model)
    return model


def check_sharding(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Tell whether processes hold parts of the weights only.

    Raises:
        RecipeError: If the recipe asks for what needs all of them, or whole matrices, in one place.

    Example:
        >>> check_sharding(Recipe(), Accelerator(cpu=True))
        False
    """
    kind = accelerator.distributed_type
    sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    whole = recipe.optim.model_ema or recipe.refine.refine_epochs > 0
    if sharded and (whole or recipe.compute.grad_accum_steps > 1):
        raise RecipeError(
            f"{kind.value} spreads the weights over the processes, which --model-ema, "
            "--refine-epochs and --grad-accum-steps do not support; leave them out, or use "
            "multi_gpu.yaml."
        )
    if kind == DistributedType.DEEPSPEED and "muon" in recipe.optim.opt.lower():
        raise RecipeError(
            f"DeepSpeed cuts the weights into vectors, and --opt {recipe.optim.opt} needs the "
            "matrices; use --opt sgd, or multi_gpu.yaml or fsdp2.yaml."
        )
    return sharded


def gathered(wrapped: nn.Module, spare: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Bring weights together that processes hold parts of.

    Args:
        wrapped: The prepared model.
        spare: A copy of the plain one, which is given them.
        accelerator: Where it runs.

    Returns:
        ``spare``, with all weights, on every process.
    """
    state = accelerator.get_state_dict(wrapped)
    if accelerator.is_main_process:  # the only one that is given it
        spare.load_state_dict(state)
    spare.to(accelerator.device)
    for tensor in spare.state_dict().values():
        tensor.copy_(broadcast(tensor))
    return spare


def compiled(wrapped: nn.Module, compute: ComputeConfig) -> Any:
    """Compile a prepared model, where it is asked for.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> compiled(layer, ComputeConfig()) is layer
        True
    """
    backend = compute.torchcompile
    return torch.compile(wrapped, backend=backend) if backend else wrapped


def agree_on_statistics(*models: nn.Module) -> None:
    """Give all processes the main one's running statistics; each kept those of its own images.

    Args:
        models: Changed in place.
    """
    for model in models:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
