"""What a run would cost, before it is started: chains, memory, multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .bench import count_macs, evaluating
from .distill import Taps
from .expand import audit
from .expanded import chain_of, factors_of
from .fit import Trainer
from .optim import is_plain_sgd, make_optimizer
from .recipe import OptimConfig, Recipe


def describe(trainer: Trainer, images: Tensor) -> str:
    """Tell layers and chains, trainable parameters, memory, and multiply-adds of one step.

    Args:
        trainer: Ready to train; nothing of it changes.
        images: One batch of one process, ``b x c x h x w``.

    Returns:
        Lines to print. Memory is an estimate: what torch's allocator keeps beside it is not in.
    """
    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return "\n".join(
        [
            _settings(trainer.recipe, trainer.epochs),
            str(audit(trainer.model)),
            f"trainable parameters: {trainable:,}",
            _table("memory of one process, estimated", _memory(trainer, images), _mebibytes),
            _table("multiply-adds of one step and process", _macs(trainer, images), "{:,}".format),
        ]
    )


def _settings(recipe: Recipe, epochs: int) -> str:
    """What is about to run, in a line or two."""
    told = f"{recipe.data.dataset}, {epochs} epochs of {recipe.optim.opt} at lr {recipe.optim.lr:g}"
    if recipe.schedule.decay_milestones:
        told += f", falling after {', '.join(map(str, recipe.schedule.decay_milestones))}"
    if recipe.expand.rate:
        told += f"; rate {recipe.expand.rate:g}, init {recipe.expand.init}"
        if is_plain_sgd(recipe.optim):
            told += (
                "\nchains are compact (square outer factors), which train under SGD as wide ones"
            )
    return told


def _memory(trainer: Trainer, images: Tensor) -> dict[str, int]:
    """Bytes by purpose."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in parameters)
    with torch.no_grad():
        composed = sum(_weight(module).nbytes for module in _expanded(trainer.model))
    return {
        "weights": _bytes(trainer.model),
        "gradients": gradients,
        "optimiser": gradients * _numbers_kept(trainer.recipe.optim),
        "composed weights": composed,
        "moving average": _bytes(trainer.average.module) if trainer.average else 0,
        "teacher": _bytes(trainer.teacher) if trainer.teacher else 0,
        "activations": _kept_for_backward(trainer.model, images),
    }


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _numbers_kept(optim: OptimConfig) -> int:
    """Numbers that an optimiser keeps for each one of a matrix, seen on a small one."""
    layer = nn.Linear(8, 8, bias=False)
    optimizer = make_optimizer(layer, optim)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    state = [t for t in optimizer.state[layer.weight].values() if isinstance(t, Tensor)]
    return sum(t.numel() for t in state) // layer.weight.numel()


def _kept_for_backward(model: nn.Module, images: Tensor) -> int:
    """Bytes of activations that a forward pass keeps, seen on two images."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and len(tensor) == 2:  # a batch, no weight
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with evaluating(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images[:2])  # held, so that no storage is used twice
    assert isinstance(output, Tensor)
    return sum(kept.values()) * len(images) // 2


def _macs(trainer: Trainer, images: Tensor) -> dict[str, int]:
    """Multiply-adds by part; a backward pass counts as two forward passes."""
    batch, size = len(images), (images.shape[1], images.shape[2], images.shape[3])
    steps = trainer.recipe.compute.grad_accum_steps
    teacher = trainer.teacher  # which may see images of another size
    return {
        "student": 3 * count_macs(trainer.model, size) * batch * steps,
        "composition": 3 * _composition(trainer.model),
        "Gram matrices": _grams(trainer, images) * steps,
        "teacher": count_macs(teacher, size) * batch * steps if teacher is not None else 0,
    }


def _composition(model: nn.Module) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        for module in _expanded(model):
            _weight(module)
    return int(counter.get_total_flops()) // 2


def _weight(module: nn.Module) -> Tensor:
    """Compose an expanded layer's weight, whatever mode it is in."""
    chain = chain_of(module)
    assert chain is not None
    return chain.compose(*factors_of(module))


def _expanded(model: nn.Module) -> Iterable[nn.Module]:
    return [module for module in model.modules() if chain_of(module) is not None]


@torch.no_grad()
def _grams(trainer: Trainer, images: Tensor) -> int:
    """``c D`` an image, for ``D`` numbers in sub-batches of ``c``: ours thrice, the teacher's once.

    Forward is one product, backward two (`gram`).
    """
    c, macs = min(len(images), trainer.recipe.distill.sub_batch), 0
    ways = ((trainer.model, 3), (trainer.teacher, 1))
    for taps, (model, products) in zip(trainer.objective.taps, ways, strict=False):
        counted = Taps(taps.model, taps.names, see=lambda output: output[0].numel())
        assert model is not None
        with evaluating(model), counted as numbers:
            model(images[:1])
        macs += products * sum(numbers.values()) * c * len(images)
    return macs


def _table(title: str, parts: dict[str, int], form: Callable[[int], str]) -> str:
    shown = {name: value for name, value in parts.items() if value}
    shown["together"] = sum(shown.values())
    wide = max(map(len, shown))
    lines = [f"  {name:<{wide}}  {form(value):>20}" for name, value in shown.items()]
    return "\n".join([f"{title}:", *lines])


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
