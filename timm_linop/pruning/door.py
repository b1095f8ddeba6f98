"""One door from dense to slim: `prune`, whatever the method."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..architecture import base_of, forget_caches
from ..errors import LinOPError, PruningError, RecipeError, StructureError, close_names
from ..expand import is_expanded
from ..probing import image_size
from ..recipe import PruneConfig
from ..structure import Structure
from .amount import read_ratios
from .choice import by_scores
from .criteria import importance_of
from .curl import kl_scores
from .iterative import step_by_step
from .kept_scores import KeptScores
from .report import Pruned, report_of
from .subject import Subject
from .training import Training, check_penalty, train_towards

Batch = tuple[Tensor, Tensor]
_log = logging.getLogger(__name__)
# Logits of images that differ by less of the largest one are the same but for rounding.
_SAME = 1e-4


def prune(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    batches: Any = None,
    training: Training | None = None,
    time_limit: float = 300,
    **options: Any,
) -> nn.Module:
    """Remove channels from a timm model, and prove that nothing else changed.

    Channels that belong together go together, as torch-pruning's dependency graph couples them. The
    result must compute what the dense model does with those channels masked, and must be rebuilt by
    name with the same logits bit for bit. Groups of channels for which that does not hold are left
    whole, and a warning names them.

    Args:
        model: A dense timm model; it is left as it is.
        example: A batch of images to trace with, ``b x c x h x w``; None makes one of the model's
            own input size.
        batches: Training images as the model sees them in evaluation, ``(images b x c x h x w,
            labels b)`` a batch: for curl, for the criteria taylor and hessian, and for
            ``recalibrate``.
        training: How admm and tpp train.
        time_limit: Seconds to look for groups that pass; those not tried by then are left whole.
        options: What to remove and how it is chosen, as the fields of
            `timm_linop.recipe.PruneConfig`: ``method`` (magnitude, admm, tpp, curl); one of
            ``ratio``, ``target_params``, ``target_macs``, ``ratios``; ``criterion``, ``scope``,
            ``round_to``, ``keep``...

    Returns:
        A slim copy of the model, in eval mode. The classifier keeps its outputs.

    Raises:
        PruningError: If an option is unknown or out of range, the method needs images that are not
            given, or no channels can be removed safely.
        StructureError: If the model was not made by timm.

    Example:
        >>> import timm
        >>> slim = prune(timm.create_model("test_resnet", num_classes=10), ratio=0.5)
        >>> slim.fc
        Linear(in_features=48, out_features=10, bias=True)
    """
    return pruned(
        model, example, batches=batches, training=training, time_limit=time_limit, **options
    ).model


def pruned(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    batches: Any = None,
    training: Training | None = None,
    kept_scores: KeptScores | None = None,
    time_limit: float = 300,
    **options: Any,
) -> Pruned:
    """Prune as `prune` does, and tell what was found on the way.

    Args:
        model: As for `prune`, like those below that are not told of here.
        example: Likewise.
        batches: Likewise.
        training: Likewise.
        kept_scores: Where curl keeps its scores, from which it goes on; its processes share the
            work.
        time_limit: Likewise.
        options: Likewise.

    Returns:
        The slim model, and a report: groups, scores, what was left whole, how a method converged.

    Example:
        >>> import timm
        >>> pruned(timm.create_model("test_resnet"), ratio=0.5).report.left_whole
        ()
    """
    config = _config(options)
    _check(model, config, batches, training)
    structure = Structure.of(forget_caches(model), base_of(model))
    example = _example(model, example)
    images = _first_images(batches, config) if config.scores_images else []
    importance = partial(importance_of, config.criterion, images=images)
    with _explained(structure.base, config):
        subject = Subject(model, structure, example, importance, config.keep)
        scores = _scores(subject, config, images, kept_scores)
        choose = by_scores(subject, scores, config)
        if config.iterative_steps > 1:
            choose = step_by_step(subject, importance, config)
        removed = subject.settle(choose, time_limit)
    trained, history = model, list[dict[str, float]]()
    if training is not None and config.trains:
        trained, removed, history = train_towards(subject, removed, config, training)
    with _explained(structure.base, config):
        slim = subject.slim(removed, trained)
    if config.recalibrate:
        _recalibrate(slim, batches, config.recalibrate)
    seen = batches if training is None else training.validation
    _warn_of_dead(slim, () if seen is None else seen)
    return Pruned(slim, report_of(subject, config, removed, scores, history))


@contextmanager
def _explained(base: str, config: PruneConfig) -> Iterator[None]:
    """Say of what cannot be cut that it cannot, and that nothing is lost."""
    try:
        yield
    except (PruningError, StructureError) as error:
        raise PruningError(
            f"pruning {base} with method={config.method!r} gives no usable slim model: {error} "
            "The model is as it was."
        ) from error
    except LinOPError:
        raise
    except Exception as error:  # torch-pruning fails in many ways on graphs it cannot follow
        raise PruningError(
            f"{base} cannot be pruned: its graph could not be followed "
            f"({type(error).__name__}: {str(error)[:200]}). The model is as it was."
        ) from error


def _scores(
    subject: Subject, config: PruneConfig, images: Sequence[Batch], kept: KeptScores | None
) -> Mapping[str, Tensor]:
    """Of each group's units: by torch-pruning's criterion, or by what the output is without it."""
    if config.method != "curl":
        return subject.scores
    stacked = torch.cat([x for x, _ in images])
    if kept is None:
        return kl_scores(subject.model, subject.groups, stacked)
    return kl_scores(
        subject.model,
        subject.groups,
        stacked,
        done=kept.done,
        after_group=kept.add,
        accelerator=kept.accelerator,
    )


def _recalibrate(slim: nn.Module, batches: Any, count: int) -> None:
    """Take BatchNorm statistics anew: those of the dense model are of other inputs."""
    update_bn(islice(batches, count), slim, next(slim.parameters()).device)
    slim.eval()


@torch.no_grad()
def _warn_of_dead(slim: nn.Module, batches: Iterable[Batch]) -> None:
    """Say where nothing of the images reaches the output, from the first batch."""
    images = next((x.to(next(slim.parameters())) for x, _ in batches), None)
    if images is None or len(images) == 1:
        return
    anew = copy.deepcopy(slim)
    _recalibrate(anew, [(images,)], 1)  # statistics that are stale are no death
    logits = anew(images)
    spread = (logits.amax(0) - logits.amin(0)).max()
    if spread <= _SAME * logits.abs().max():
        _log.warning(
            "The slim model is dead: it gives the same logits for all %d images of a batch, and "
            "fine-tuning may not bring it back. Remove less, train longer as you prune, or take "
            "another seed.",
            len(images),
        )


def _config(options: Mapping[str, Any]) -> PruneConfig:
    known = [each.name for each in fields(PruneConfig)]
    for name in options:
        if name not in known:
            raise PruningError(
                f"{name}= is no option of prune(); there are {', '.join(known)}."
                + close_names(name, known)
            )
    try:
        config = PruneConfig(**{**options, "round_to": options.get("round_to", 8) or 1})
    except RecipeError as error:
        raise PruningError(str(error)) from error
    # A file of ratios may change; what it says now is what is reported.
    return replace(config, ratios=read_ratios(config.ratios)) if config.ratios else config


def _check(model: Any, config: PruneConfig, batches: Any, training: Training | None) -> None:
    if is_expanded(model):
        raise PruningError("the model is expanded; contract(model) it before pruning.")
    if (config.scores_images or config.recalibrate) and batches is None:
        what = "recalibrate" if config.recalibrate else f"criterion={config.criterion!r}"
        what = "method='curl'" if config.method == "curl" else what
        raise PruningError(f"{what} looks at images; pass batches= of training images and labels.")
    if config.trains and training is None:
        raise PruningError(
            f"method={config.method!r} trains before it removes anything; pass training=, a "
            "timm_linop.pruning.Training."
        )
    if training is not None and not isinstance(training, Training):
        raise PruningError(
            f"training= is a {type(training).__name__}; wrap batches to train and to validate on: "
            "timm_linop.pruning.Training(train, validation)."
        )
    if training is not None:
        check_penalty(config, training.recipe.optim, training.admm)


def _example(model: nn.Module, example: Tensor | None) -> Tensor:
    if example is None:
        example = torch.randn(1, *image_size(model))
    if example.numel() == 0:
        raise PruningError(
            f"example holds no image ({list(example.shape)}), so nothing could be compared; pass a "
            "batch of at least one, or None."
        )
    return example.to(next(model.parameters()))


def _first_images(batches: Any, config: PruneConfig) -> Sequence[Batch]:
    """The images that scores are taken from, in whole batches but for the last."""
    found: list[Batch] = []
    missing = config.score_images
    for images, labels in batches:
        found.append((images[:missing], labels[:missing]))
        missing -= len(found[-1][1])
        if not missing:
            break
    return found
