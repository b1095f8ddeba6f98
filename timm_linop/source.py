"""Where a slim model comes from: anything a user may pass as ``pruned=``, made into plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.models import load_state_dict
from torch import Tensor, nn

from .architecture import base_of, known_architecture, model_args_of
from .errors import CheckpointError, HubError, StructureError
from .expand import is_expanded
from .structure import Structure

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MAX_CONFIG_BYTES = 20_000_000


@dataclass(frozen=True)
class Source:
    """A slim model as data.

    Attributes:
        structure: Its slim shape; None leaves the architecture dense.
        weights: Its tensors; None where only the structure was given.
        model_args: What it was built with (``num_classes``, ``in_chans``, ``img_size``...).
        pretrained_cfg: timm's data and head settings of the weights, without their location.
    """

    structure: Structure | None = None
    weights: Mapping[str, Tensor] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] | None = None


def resolve(pruned: Any, base: str) -> Source:
    """Read whatever was passed as ``pruned=``.

    Args:
        pruned: A timm module, a `Structure` or its dict, a run or slim folder, a ``.safetensors``
            or ``.pth`` state dict, a Hub id (``hf-hub:user/repo``), or None for the dense backbone.
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
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in _LOCATION}  # type: ignore
    args = model_args_of(model)
    return Source(Structure.of(model, base_of(model)), model.state_dict(), args, cfg)


def _from_name(name: str, base: str) -> Source:
    if name.startswith("hf-hub:"):
        return _from_folder(_download(name.removeprefix("hf-hub:")))
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _from_folder(slim_folder(path))
    if path.is_file():
        weights = read_weights(path)
        return Source(Structure.from_state_dict(weights, base), weights)
    raise CheckpointError(
        f"pruned={name!r} does not exist: no folder, no checkpoint file, and no Hub id (those "
        "begin with 'hf-hub:'). Check the path."
    )


def slim_folder(path: Path) -> Path:
    """Return the slim folder that a path means: itself, or ``slim/`` of a run folder.

    Args:
        path: A folder.

    Raises:
        CheckpointError: If neither holds a config.json and weights.

    Example:
        >>> slim_folder(Path("/nowhere"))
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: /nowhere holds no slim model (config.json ...
    """
    for folder in (path, path / "slim"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    raise CheckpointError(
        f"{path} holds no slim model ({CONFIG} and {WEIGHTS}, in it or in its slim/ folder); name "
        "the output folder of prune.py or train.py, or one written by timm_linop.save()."
    )


def _from_folder(folder: Path) -> Source:
    config = read_config(folder / CONFIG)
    args = _mapping(config, "model_args", folder)
    cfg = {k: v for k, v in config["pretrained_cfg"].items() if k not in _LOCATION}
    weights = read_weights(folder / WEIGHTS)
    structure_data = args.pop("pruned", None)
    args = {k: v for k, v in args.items() if k not in ("rate", "init", "seed")}
    base = known_architecture(str(config.get("architecture")))
    if structure_data is None:
        return Source(Structure.from_state_dict(weights, base, **args), weights, args, cfg)
    return Source(Structure.from_dict(structure_data), weights, args, cfg)


# Where weights lie is not copied from one model to the next.
_LOCATION = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "architecture")


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json that nobody vouches for.

    Args:
        path: The file.

    Returns:
        Its top level, label names moved beside the ``pretrained_cfg`` as timm does.

    Raises:
        CheckpointError: If it is too large, no JSON, or no object.
    """
    size = path.stat().st_size
    if size > _MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes, over {_MAX_CONFIG_BYTES:,}; no model needs that: save it "
            "again."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); save the model again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object; save the model again.")
    cfg = _mapping(config, "pretrained_cfg", path)
    for key in ("num_classes", "label_names", "label_descriptions"):
        if key in config:
            cfg[key] = config[key]
    return {**config, "pretrained_cfg": cfg}


def _mapping(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is no JSON object; save the model again.")
    return dict(value)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict without unpickling code.

    Args:
        path: A ``.safetensors`` file, or a ``.pth`` one read with ``weights_only=True``.

    Returns:
        Tensor name to tensor; a wrapper's prefix and a checkpoint's outer dict are taken off.

    Raises:
        CheckpointError: If it is missing, corrupt, or would run code when read.
    """
    try:
        weights = load_state_dict(str(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path.") from error
    except Exception as error:  # the readers raise whatever a corrupt file makes of them
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path} is a pickled module, which could run any code when read; save its tensors "
                "instead: torch.save(model.state_dict(), path)."
            ) from error
        raise CheckpointError(
            f"{path} is no readable state dict ({type(error).__name__}); it may be cut short. "
            "Save it again as .safetensors."
        ) from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise CheckpointError(
            f"{path} holds no state dict (names to tensors); save model.state_dict()."
        )
    return weights


def _download(repo: str) -> Path:
    repo_id, _, revision = repo.partition("@")
    try:
        for filename in (CONFIG, WEIGHTS):
            path = hf_hub_download(repo_id, filename, revision=revision or None)
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"hf-hub:{repo} is not in the cache and the Hub cannot be reached; check the network, "
            "or HF_HUB_OFFLINE."
        ) from error
    except (HfHubHTTPError, ValueError) as error:
        raise HubError(
            f"hf-hub:{repo} cannot be read ({type(error).__name__}); check the id and, for a "
            "private repo, log in (hf auth login)."
        ) from error
    return Path(path).parent
