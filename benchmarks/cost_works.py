"""What the cost benchmark times: models of its workloads and steps of their training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import timm_linop
from timm_linop.distill import SimilarityPreservingLoss, Taps, paired_layers
from timm_linop.expanded import chain_of
from timm_linop.literal import as_layers

RATE = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Workload:
    """A slim model and the batches it is trained with."""

    architecture: str
    ratio: float
    size: int
    batch: int

    def __str__(self) -> str:
        """Name it as the tables do."""
        return f"{self.architecture} -{self.ratio:.0%} {self.size}px b{self.batch}"


WORKLOADS = (
    Workload("mobilenetv2_100", 0.7, 224, 32),
    Workload("mobilenetv2_100", 0.7, 32, 128),
    Workload("resnet18", 0.5, 64, 64),
    Workload("resnet50", 0.5, 224, 16),
    Workload("vit_tiny_patch16_224", 0.5, 224, 16),
)


@cache
def dense(architecture: str) -> nn.Module:
    """The dense model of a workload, with random weights."""
    torch.manual_seed(0)
    return timm.create_model(architecture, num_classes=10).eval()


@cache
def slim(architecture: str, ratio: float) -> nn.Module:
    """The slim model of a workload."""
    return timm_linop.prune(dense(architecture), ratio=ratio)


def arm(name: str, workload: Workload) -> nn.Module:
    """Build a model in training.

    Args:
        name: ``vanilla`` (the slim model), ``wide`` (its chains at rate 3, composed), ``compact``
            (the same for SGD, composed), or ``literal`` (chains of real layers).
        workload: Whose slim model.
    """
    model = copy.deepcopy(slim(workload.architecture, workload.ratio))
    if name != "vanilla":
        timm_linop.expand(model, RATE, seed=0, compact=name == "compact")
    if name == "literal":
        _write_out(model)
    return model.to(DEVICE).train()


def _write_out(model: nn.Module) -> None:
    """Put the real layers in each chain's place."""
    chained = [name for name, layer in model.named_modules() if chain_of(layer) is not None]
    for name in chained:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, as_layers(model.get_submodule(name)))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """The paper's: SGD with momentum and weight decay."""
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def batch_of(workload: Workload) -> tuple[Tensor, Tensor]:
    """Draw a batch of noise and classes."""
    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch, 3, workload.size, workload.size)
    images = torch.randn(shape, generator=generator)
    return images.to(DEVICE), torch.randint(10, (workload.batch,), generator=generator).to(DEVICE)


def step_of(model: nn.Module, workload: Workload) -> Callable[[], None]:
    """One step of training: forward, backward, optimizer."""
    optimizer, (images, targets) = optimizer_of(model), batch_of(workload)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def accumulated_step_of(
    model: nn.Module, workload: Workload, batches: int, once: bool
) -> Callable[[], None]:
    """One step of training over several batches, whose weights may be composed once for all."""
    optimizer, (images, targets) = optimizer_of(model), batch_of(workload)

    def step() -> None:
        optimizer.zero_grad()
        with timm_linop.composed_once(model) if once else nullcontext():
            for _ in range(batches):
                (F.cross_entropy(model(images), targets) / batches).backward()
        optimizer.step()

    return step


def state_bytes(model: nn.Module) -> int:
    """What a model's parameters, their gradients and SGD's momentum hold."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters())


def teacher_forward(workload: Workload) -> Callable[[], Any]:
    """The teacher's forward pass, which every distillation pays."""
    teacher = copy.deepcopy(dense(workload.architecture)).to(DEVICE)
    images, _ = batch_of(workload)

    @torch.no_grad()
    def forward() -> Tensor:
        return teacher(images)

    return forward


def distilled_step_of(model: nn.Module, workload: Workload, pairs: str) -> Callable[[], None]:
    """One step of training with SP-KD against the dense teacher."""
    teacher = copy.deepcopy(dense(workload.architecture)).to(DEVICE)
    optimizer, (images, targets) = optimizer_of(model), batch_of(workload)
    names, loss = paired_layers(model, teacher, pairs), SimilarityPreservingLoss(pairs)

    def step() -> None:
        optimizer.zero_grad()
        with Taps(teacher, names, loss.grams) as theirs, torch.no_grad():
            teacher(images)
        with Taps(model, names, loss.grams) as own:
            task = F.cross_entropy(model(images), targets)
        (task + 3000 * loss.compare(own, theirs)).backward()
        optimizer.step()

    return step
