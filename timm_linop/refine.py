"""Label refinement: on few images, the teacher's labels are trained along with the student.

Source: Luo & Wu, "Neural Network Pruning with Residual-Connections and Limited-Data" (CURL), CVPR
2020. Each of the fixed images of `data.expansion` has a label of its own, logits ``y``, which begin
as the teacher's of that image. With the student's logits ``o``, the class ``c`` and weight ``w``,
one loss moves both:

    L = w KL(softmax o || softmax y) + (1 - w) CE(o, c)             mean over a step's B images
    dL/dy = (w / B) (softmax y - softmax o)

The weights follow the optimiser at a low rate; the labels take a step of plain gradient descent at
rate 1, ``y <- y - dL/dy``. So where student and teacher disagree they meet, and the class pulls the
student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather, set_seed
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .data import VERSIONS, Augmentation, ImageData, make_expanded_loader, make_transforms
from .distill import Teacher
from .fit import Trainer
from .objective import Losses, Objective
from .recipe import Recipe, ScheduleConfig


def distance_to_labels(
    student: Float[Tensor, "b classes"], labels: Float[Tensor, "b classes"]
) -> Float[Tensor, ""]:
    """``KL(softmax(student) || softmax(labels))``, mean over the batch: the student's is first.

    Args:
        student: Its logits.
        labels: Logits of the labels.

    Example:
        >>> even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]])
        >>> f"{distance_to_labels(even, sure):.4f}, {distance_to_labels(sure, even):.4f}"
        '0.8554, 0.5023'
    """
    own, wanted = F.log_softmax(student.float(), dim=1), F.log_softmax(labels, dim=1)
    # torch's kl_div(input, target) is KL(target || input)
    return F.kl_div(wanted, own, reduction="batchmean", log_target=True)


def refined(
    labels: Float[Tensor, "b classes"], student: Float[Tensor, "b classes"], rate: float
) -> Float[Tensor, "b classes"]:
    """Move labels towards the student: ``y - rate (softmax y - softmax o)``.

    Args:
        labels: Their logits ``y``.
        student: Its logits ``o`` of the same images.
        rate: ``w / B``.

    Example:
        >>> refined(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), rate=0.5)
        tensor([[-0.2500,  0.2500]])
    """
    return labels - rate * (labels.softmax(dim=1) - student.float().softmax(dim=1))


class Labels:
    """The logits of all images' labels; NaN until an image is first met.

    They are the same on every process and part of every checkpoint.

    Args:
        images: How many there are.
        classes: How many there are.
        device: Where the table is kept.

    Example:
        >>> labels = Labels(2, 3, torch.device("cpu"))
        >>> labels.put(torch.tensor([1, 1]), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
        >>> labels.logits
        tensor([[nan, nan, nan],
                [1., 2., 3.]])
    """

    def __init__(self, images: int, classes: int, device: torch.device) -> None:
        self.logits = torch.full((images, classes), math.nan, device=device)

    def put(self, places: Int[Tensor, " b"], logits: Float[Tensor, "b classes"]) -> None:
        """Keep new labels.

        Args:
            places: Of their images. Processes repeat some to have equally many, so the first one of
                each place counts.
            logits: The labels, a row a place.
        """
        kept, each = places.unique(return_inverse=True)
        rows = torch.arange(len(places), device=places.device)
        first = torch.full_like(kept, len(places)).scatter_reduce(0, each, rows, "amin")
        self.logits[kept] = logits[first]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"logits": self.logits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.logits.copy_(state["logits"])


class Refinement(Objective):
    """The loss of the student, and the step of the labels.

    Args:
        student: The model in training.
        teacher: Asked once for each image, when it is first met.
        recipe: As `second_stage` makes it.
        labels: Those of all images.
    """

    def __init__(self, student: Any, teacher: Teacher, recipe: Recipe, labels: Labels) -> None:
        super().__init__(student, teacher, recipe)
        self.ask, self.labels, self.weight = teacher, labels, recipe.refine.refine_weight
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, forward: Any, images: Tensor, targets: Tensor, autocast: Any) -> Losses:
        """Run the student on one batch; ``targets`` are its classes and places, ``b x 2``."""
        classes, places = targets.unbind(dim=1)
        labels = self._labels_of(places, images, autocast)
        logits = forward(images)
        task, kd = self.criterion(logits, classes), distance_to_labels(logits, labels)
        self.seen.append((places, labels, logits.detach()))
        total = self.weight * kd + (1 - self.weight) * task
        return Losses(total, task, task.new_zeros(()), kd)

    def after_step(self, updates: int) -> None:
        """Move the labels of a step's images, of all its batches and processes."""
        places, labels, student = (torch.cat(each) for each in zip(*self.seen, strict=True))
        self.seen.clear()
        count = len(gather(places))
        moved = refined(labels, student, self.weight / count)
        self.labels.put(gather(places), gather(moved))

    def _labels_of(self, places: Tensor, images: Tensor, autocast: Any) -> Tensor:
        labels = self.labels.logits[places]
        new = labels.isnan().any(dim=1)
        if new.any():
            with autocast:
                labels[new] = self.ask(images[new]).to(labels)
        return labels


def second_stage(recipe: Recipe) -> Recipe:
    """Turn the recipe of a run into that of its label refinement.

    Args:
        recipe: An effective one.

    Returns:
        The same with the refinement's rate, a cosine without warm-up, nothing mixed, and nothing
        asked of the teacher but the labels it begins with. Batch statistics that are shared stay
        so: timm's conversion is not to be done twice, it would lose activations.

    Example:
        >>> from timm_linop.recipe import RefineConfig
        >>> stage = second_stage(Recipe(refine=RefineConfig(refine_epochs=16)))
        >>> stage.optim.lr, stage.schedule.sched, stage.schedule.epochs
        (0.0001, 'cosine', 16)
    """
    optim = replace(recipe.optim, lr=recipe.refine.refine_lr, mixup=0.0, cutmix=0.0)
    return replace(
        recipe,
        optim=replace(optim, cutmix_minmax=None),
        schedule=ScheduleConfig(epochs=recipe.refine.refine_epochs),
        distill=replace(recipe.distill, gamma=0.0, kd_weight=0.0),
        compute=replace(recipe.compute, sync_bn=False),
    )


def refiner(trainer: Trainer, data: ImageData, config: Mapping[str, Any]) -> Trainer:
    """Make the training that goes on from a finished one with label refinement.

    Args:
        trainer: The finished one, whose accelerator is used again.
        data: Its train split is expanded.
        config: Input size, mean and std of its images.

    Returns:
        A trainer of the same model: expanded layers stay so, and a moving average takes its
        weights' place. Its checkpoints are in ``refined/``; its rows follow in metrics.csv.
    """
    recipe, accelerator, teacher = trainer.recipe, trainer.accelerator, trainer.teacher
    assert teacher is not None  # the recipe has seen to it
    model: Any = accelerator.unwrap_model(trainer.wrapped, keep_fp32_wrapper=False)
    if trainer.average is not None:
        model.load_state_dict(trainer.average.module.state_dict())
    accelerator.free_memory()
    # As at the run's beginning: the same order of images on every process, then draws of its own.
    set_seed(recipe.run.seed)
    stage = second_stage(recipe)
    _, transform = make_transforms(dict(config), augment=Augmentation())
    loader = make_expanded_loader(
        data.train,
        transform,
        recipe.data.batch_size,
        workers=recipe.data.workers,
        seed=recipe.run.seed,
    )
    labels = Labels(len(VERSIONS) * len(data.train), model.num_classes, accelerator.device)
    accelerator.register_for_checkpointing(labels)
    objective = Refinement(model, teacher, stage, labels)
    validation, before = trainer.validation, trainer.progress
    second = Trainer(
        model, teacher, loader, validation, stage, accelerator, objective, before=before
    )
    second.after_epoch = trainer.after_epoch
    set_seed(recipe.run.seed, device_specific=True)
    return second
