"""Students and teachers, as a recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_input_data_config
from timm.models import get_model_input_config
from torch import nn

from .architecture import known_architecture
from .checkpoint import CONFIG
from .data import ImageData, check_fits
from .distill import Teacher
from .download import fetch
from .errors import CheckpointError, LinOPError, RecipeError, UnknownModelError
from .expand import check_settings, expand
from .optim import is_plain_sgd, is_sgd
from .recipe import DenseConfig, ModelConfig, PruneRecipe, Recipe
from .registry import build
from .source import base_named_by, resolve, slim_folder


def arm_of(recipe: Recipe) -> str:
    """Name the arm of a comparison that an effective recipe runs.

    Returns:
        The paper's name for it; then what it adds to that: distilled logits, of a slim model
        another optimizer than SGD, and mixed images, and refined labels.

    Example:
        >>> arm_of(Recipe(ModelConfig(model="resnet18")).effective())
        'dense'
    """
    distilled, expanded = bool(recipe.distill.gamma), bool(recipe.expand.rate)
    if recipe.model.pruned is None:
        name = "expanded dense" if expanded else "dense"
    elif recipe.model.reinit:
        names = {(False, False): "scratch", (True, False): "scratch, distilled"}
        names |= {(False, True): "expandnets", (True, True): "expandnets, distilled"}
        name = names[distilled, expanded]
    else:
        names = {(False, False): "vanilla", (True, False): "distilled"}
        names |= {(False, True): "expanded", (True, True): "linop"}
        name = names[distilled, expanded]
    optim, slim = recipe.optim, recipe.model.pruned is not None
    added = {
        "KD": recipe.distill.kd_weight,
        optim.opt.lower(): slim and not is_sgd(optim),
        "mixup": slim and optim.mixup,
        "cutmix": slim and optim.cutmix,
        "refined": recipe.refine.refine_epochs,
    }
    return ", ".join([name, *(word for word, does in added.items() if does)])


def make_student(recipe: Recipe, data: ImageData) -> tuple[nn.Module, nn.Module | None]:
    """Build the model to train, and the slim model it starts from.

    Args:
        recipe: An effective recipe; its model, expand and run groups are read.
        data: Tells the number of classes.

    Returns:
        The student, expanded where the recipe says so; the slim start, None where there is none.

    Raises:
        LinOPError: If the recipe's model cannot be built, or does not fit the data.
    """
    rate, settings = recipe.expand.rate or 0, recipe.expand
    if rate:
        check_settings(rate, settings.init)
    args = _model_args(recipe.model) | {"num_classes": len(data.class_names)}
    start = None
    if recipe.model.pruned is None:
        student = _dense(recipe.model, args)
    elif recipe.model.reinit:
        student = _slim(recipe.model.pruned, recipe.model.model, args, reinit=True)
    else:
        student = _slim(recipe.model.pruned, recipe.model.model, args)
        start = _slim(recipe.model.pruned, recipe.model.model, args)
    _check_fits(student, data)
    if rate:
        layers, compact = (settings.include, settings.exclude), is_plain_sgd(recipe.optim)
        expand(student, rate, settings.init, *layers, recipe.run.seed, compact)
    return student, start


def make_teacher(recipe: Recipe, config: Mapping[str, Any]) -> Teacher:
    """Load the dense teacher.

    Args:
        recipe: Its distill group is read.
        config: Input size, mean and std of the student's images.

    Returns:
        The teacher, which undoes the student's input normalisation for its own.

    Raises:
        CheckpointError: If it cannot be loaded.
        UnknownModelError: If neither a folder nor timm has that name.
        RecipeError: If it reads another number of channels than the student.
    """
    name = recipe.distill.teacher or ""
    model = _loaded(name, lambda: timm.create_model(_located(name), pretrained=True))
    own = resolve_input_data_config(model)
    if own["input_size"][0] != config["input_size"][0]:
        raise RecipeError(
            f"teacher {name} reads {own['input_size'][0]} channels and the student "
            f"{config['input_size'][0]}; train both with the same --in-chans."
        )
    size = _teacher_size(recipe.distill.teacher_img_size, model, own["input_size"])
    return Teacher(model, config["mean"], config["std"], own["mean"], own["std"], size)


def _teacher_size(asked: int | None, model: Any, own: Sequence[int]) -> tuple[int, int] | None:
    """Images the teacher sees: as asked, its own where it takes no other, else the student's."""
    if asked is not None:
        return asked, asked
    fixed = (getattr(model, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    return (own[1], own[2]) if fixed else None


def trained_model(recipe: PruneRecipe, data: ImageData) -> nn.Module:
    """Load the trained dense model that is to be pruned.

    Args:
        recipe: Its model group is read.
        data: Tells the number of classes.

    Raises:
        RecipeError: If no weights are named.
        CheckpointError: If they cannot be loaded.
        DataError: If the model does not fit the data.
    """
    weights, args = recipe.model.weights, _model_args(recipe.model)
    if weights is None:
        raise RecipeError(
            "nothing to prune: pass --weights (a folder of train.py, a checkpoint of --model, or "
            "'pretrained' for timm's own weights of --model)."
        )
    if weights == "pretrained":
        plain = ModelConfig(recipe.model.model, pretrained=True, img_size=recipe.model.img_size)
        model = _dense(plain, args)
    else:
        model = _slim(weights, recipe.model.model, args)
    _check_fits(model, data)
    return model


def _model_args(model: ModelConfig | DenseConfig) -> dict[str, Any]:
    args = {
        "in_chans": model.in_chans,
        "drop_rate": model.drop or None,
        "drop_path_rate": model.drop_path,
    }
    return {key: value for key, value in args.items() if value is not None} | model.model_kwargs


def _dense(model: ModelConfig, args: dict[str, Any]) -> nn.Module:
    base = known_architecture(model.model or "")
    cfg = timm.get_pretrained_cfg(base)
    if model.img_size and cfg is not None and cfg.fixed_input_size:
        args = {**args, "img_size": model.img_size}
    return _loaded(base, lambda: build(base, pretrained=model.pretrained, rate=0, **args))


def _slim(
    pruned: str, base: str | None, args: dict[str, Any], *, reinit: bool = False
) -> nn.Module:
    base = base_named_by(pruned, base)
    if not reinit:
        return build(base, pruned=pruned, rate=0, **args)
    source = resolve(pruned, base)
    kwargs = {**source.model_args, **args, "pretrained_cfg": source.pretrained_cfg}
    return build(base, pruned=source.structure, rate=0, **kwargs)


def _loaded(name: str, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except LinOPError:
        raise
    except Exception as error:  # timm and the Hub's client raise many kinds
        raise CheckpointError(
            f"{name} cannot be loaded ({type(error).__name__}: {str(error)[:200]}); check the "
            "name, the folder, or the network."
        ) from error


def _located(name: str) -> str:
    """Let a run folder be named, and what is not there be refused in clear words."""
    kind, _, repo = name.partition(":")
    if kind.lower().replace("_", "-") == "hf-hub":
        fetch(repo, [CONFIG])
        return name
    try:
        known_architecture(name)
    except UnknownModelError as unknown:
        return f"local-dir:{slim_folder(_folder_named(name, unknown))}"
    return name


def _folder_named(name: str, unknown: UnknownModelError) -> Path:
    """The folder that a name stands for which is no architecture's."""
    place = name.removeprefix("local-dir:")
    folder = Path(place).expanduser()
    if place and folder.is_dir():
        return folder
    if place != name or "/" in name or "\\" in name:
        raise CheckpointError(
            f"teacher={name!r}: there is no folder {folder}; check the path. A repo of the Hub is "
            "hf-hub:USER/REPO."
        ) from None
    raise UnknownModelError(f"teacher={name!r}: there is no such folder, and {unknown}") from None


def _check_fits(model: nn.Module, data: ImageData) -> None:
    channels = get_model_input_config(model)["input_size"][0]
    check_fits(data, num_classes=model.num_classes, in_chans=channels)  # type: ignore[arg-type]
