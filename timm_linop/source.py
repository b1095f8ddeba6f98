"""Where a slim model comes from: anything a user may pass as ``pruned=``, made into plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .architecture import args_told_by, base_of, known_architecture, model_args_of
from .checkpoint import (
    CONFIG,
    WEIGHTS,
    mapping,
    read_config,
    read_weights,
    slim_folder,
)
from .download import fetch
from .errors import CheckpointError, LinOPError, StructureError
from .expand import is_expanded
from .memory import check_model
from .saved import check_saved_args, check_saved_cfg
from .structure import Structure, without_zeros

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Source",
    "base_named_by",
    "read_config",
    "read_weights",
    "resolve",
    "slim_folder",
]


@dataclass(frozen=True)
class Source:
    """A slim model as data.

    Attributes:
        structure: Its slim shape; None leaves the architecture dense.
        weights: Its tensors; None where only the structure was given.
        model_args: What it was built with (``num_classes``, ``in_chans``, ``img_size``...).
        pretrained_cfg: timm's data and head settings of the weights, without their location.
        probe: What the saved model said to one seeded image, see `timm_linop.proof`.
    """

    structure: Structure | None = None
    weights: Mapping[str, Tensor] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] | None = None
    probe: Any = None


def resolve(pruned: Any, base: str) -> Source:
    """Read whatever was passed as ``pruned=``.

    Args:
        pruned: A timm module, a `Structure` or its dict, a run or slim folder, a state dict or a
            ``.safetensors`` or ``.pth`` file of one, a Hub id (``hf-hub:user/repo``), or None for
            the dense backbone.
        base: The timm architecture it is to be a slim form of.

    Returns:
        The slim model as data; nothing is built yet.

    Raises:
        StructureError: If it is a slim form of another architecture.
        CheckpointError: If a file is missing, unreadable, or not safe to read.
        HubError: If the Hub does not hand it out.

    Example:
        >>> resolve(Structure("resnet18"), "resnet18").structure.base
        'resnet18'
    """
    source = _read(pruned, base)
    if source.structure is not None and source.structure.base != base:
        raise StructureError(
            f"the pruned model is a {source.structure.base}, not a {base}; create it as "
            f"'linop_{source.structure.base}'."
        )
    return source


def _read(pruned: Any, base: str) -> Source:
    match pruned:
        case None:
            return Source()
        case Structure():
            return Source(pruned)
        case Mapping() if any(isinstance(value, Tensor) for value in pruned.values()):
            return _from_weights(dict(pruned), base)
        case Mapping():
            return Source(Structure.from_dict(dict(pruned)))
        case nn.Module():
            return _from_module(pruned)
        case str() | Path():
            return _from_name(str(pruned), base)
    raise CheckpointError(
        f"pruned={type(pruned).__name__} is nothing a slim model can be read from; pass a module, "
        "a Structure or its dict, a folder, a .safetensors or .pth file, or 'hf-hub:user/repo'."
    )


def _from_module(model: nn.Module) -> Source:
    if is_expanded(model):
        raise StructureError(
            "the pruned model is expanded already; contract(model) it first, or use it as it is."
        )
    base = base_of(model)
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in _LOCATION}  # type: ignore
    slim = without_zeros(model)
    weights = slim.state_dict()
    structure = Structure.of(slim, base)
    return Source(structure, weights, model_args_of(model) | args_told_by(weights, base), cfg)


def _from_name(name: str, base: str) -> Source:
    if name.startswith("hf-hub:"):
        return _from_folder(fetch(name.removeprefix("hf-hub:")))
    path = Path(name.removeprefix("local-dir:"))
    try:
        kind = "folder" if path.is_dir() else "file" if path.is_file() else ""
    except OSError:  # a name longer than the file system allows
        kind = ""
    if kind == "folder":
        return _from_folder(slim_folder(path))
    if kind == "file":
        return _from_weights(read_weights(path), base)
    raise CheckpointError(
        f"pruned={name[:200]!r} does not exist: no folder, no checkpoint file, and no Hub id "
        "(those begin with 'hf-hub:'). Check the path."
    )


def _from_weights(weights: dict[str, Tensor], base: str) -> Source:
    """Read a bare state dict: its shapes decide."""
    masked = next((name for name in weights if name.endswith("_mask")), None)
    if masked is not None:
        raise CheckpointError(
            f"the state dict holds masks of torch.nn.utils.prune ({masked!r}), not yet multiplied "
            "in; pass the module itself, or call torch.nn.utils.prune.remove on its layers first."
        )
    args = args_told_by(weights, base)
    return Source(Structure.from_state_dict(weights, base, **args), weights, args)


def base_named_by(pruned: str, model: str | None) -> str:
    """Tell which timm architecture a slim model's name stands for.

    Args:
        pruned: A folder, a checkpoint file or a Hub id.
        model: What the user says it is; needed for a checkpoint file.

    Raises:
        CheckpointError: If ``pruned`` does not say it and ``model`` is None.

    Example:
        >>> base_named_by("weights.pth", "resnet18")
        'resnet18'
    """
    if model is not None:
        return known_architecture(model)
    path = Path(pruned.removeprefix("local-dir:"))
    if pruned.startswith("hf-hub:"):
        path = fetch(pruned.removeprefix("hf-hub:"))
    if not path.exists():
        raise CheckpointError(f"{pruned} does not exist; check the path.")
    if not path.is_dir():
        raise CheckpointError(
            f"{pruned} is no folder and does not say which architecture its weights are of; pass "
            "--model NAME beside it, or check the path."
        )
    return _architecture_of(slim_folder(path))


def _architecture_of(folder: Path) -> str:
    name = read_config(folder / CONFIG).get("architecture")
    if name is None:
        raise CheckpointError(
            f"{folder / CONFIG} names no architecture, so it is of no model of timm's or "
            "timm_linop's; check the id or the path."
        )
    return known_architecture(str(name))


def _from_folder(folder: Path) -> Source:
    config, base = read_config(folder / CONFIG), _architecture_of(folder)
    args = mapping(config, "model_args", folder / CONFIG)
    check_saved_args(args)
    check_saved_cfg(config["pretrained_cfg"])
    cfg = {k: _as_timm(v) for k, v in config["pretrained_cfg"].items() if k not in _LOCATION}
    weights = read_weights(folder / WEIGHTS)
    structure_data, probe = args.pop("pruned", None), args.pop("probe", None)
    structure = None if structure_data is None else Structure.from_dict(structure_data)
    if structure is not None and structure.base != base:
        raise StructureError(
            f"{folder / CONFIG} names the architecture {base}, but its structure is of a "
            f"{structure.base}; save the model again."
        )
    # What the weights say counts: a config may claim any number of classes.
    args = {k: v for k, v in args.items() if k not in _NOT_COPIED} | args_told_by(weights, base)
    if structure is None:
        structure = _structure_read_off(weights, base, args, folder)
    return Source(structure, weights, args, cfg, probe)


def _as_timm(value: Any) -> Any:
    """JSON has no tuples, which timm's image sizes, means and deviations are."""
    numbers = isinstance(value, list) and all(isinstance(part, int | float) for part in value)
    return tuple(value) if numbers else value


def _structure_read_off(
    weights: Mapping[str, Tensor], base: str, args: Mapping[str, Any], folder: Path
) -> Structure:
    try:
        check_model(base, args)
        return Structure.from_state_dict(weights, base, **args)
    except LinOPError:
        raise
    except Exception as error:  # timm builds with arguments that nobody vouches for
        raise CheckpointError(
            f"{folder / CONFIG}: timm cannot build {base} with these model_args "
            f"({type(error).__name__}: {str(error)[:200]}); save the model again."
        ) from error


# Where weights lie, and how they were expanded, is not copied from one model to the next.
_LOCATION = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "architecture")
_NOT_COPIED = {"rate", "init", "seed", "base", "pretrained", "pretrained_cfg", "cache_dir"} | {
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "checkpoint_path",
}
