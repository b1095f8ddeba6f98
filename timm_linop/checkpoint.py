"""Read a slim model's files, which nobody vouches for: a folder, config.json, weights."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import Tensor

from .errors import CheckpointError
from .memory import check_bytes
from .structure import VERSION

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_MAX_CONFIG_BYTES = 20_000_000
_MAX_DEPTH = 32


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


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json that nobody vouches for.

    Args:
        path: The file.

    Returns:
        Its top level, label names moved beside the ``pretrained_cfg`` as timm does.

    Raises:
        CheckpointError: If it is too large, no JSON, no object, nested deeply, tells twice, or is
            of a newer timm_linop.
    """
    size = path.stat().st_size
    if size > _MAX_CONFIG_BYTES:
        raise CheckpointError(
            f"{path} has {size:,} bytes, over {_MAX_CONFIG_BYTES:,}; no model needs that: save it "
            "again."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_told_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); save the model again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object; save the model again.")
    if _is_deep(config):
        raise CheckpointError(
            f"{path} is nested more than {_MAX_DEPTH} deep, which no model needs; save it again."
        )
    _check_version(config, path)
    cfg = mapping(config, "pretrained_cfg", path)
    for key in ("num_classes", "label_names", "label_descriptions"):
        if key in config:
            cfg[key] = config[key]
    return {**config, "pretrained_cfg": cfg}


def _check_version(config: Mapping[str, Any], path: Path) -> None:
    """Refuse what a newer timm_linop wrote before anything else in it is found to be strange."""
    structure = mapping(config, "model_args", path).get("pruned")
    told = structure.get("version") if isinstance(structure, dict) else None
    if isinstance(told, int) and told > VERSION:
        raise CheckpointError(
            f"{path} is of version {told}, and this timm_linop reads {VERSION} at most: a newer "
            "one wrote it; upgrade timm_linop (pip install -U timm-linop)."
        )


def _told_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; two readers could see two models in one that tells a thing twice."""
    told = dict(pairs)
    if len(told) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{twice[:80]!r} is told twice in one object")
    return told


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [part.values() if isinstance(part, dict) else part for part in level]
        level = [p for parts in inner for p in parts if isinstance(p, dict | list)]
    return bool(level)


def mapping(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Return an object of a config.json; an absent one is empty.

    Raises:
        CheckpointError: If it is something else.
    """
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
    check_weights_file(path)
    try:
        weights = load_state_dict(str(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; check the path.") from error
    except Exception as error:  # the readers raise whatever a corrupt file makes of them
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path} is a pickled module, which could run any code when read, or is damaged; "
                "save the tensors instead: torch.save(model.state_dict(), path)."
            ) from error
        raise CheckpointError(
            f"{path} is no readable state dict ({type(error).__name__}); it may be cut short. "
            "Save it again as .safetensors."
        ) from error
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise CheckpointError(
            f"{path} holds no state dict (names to tensors); save model.state_dict()."
        )
    for name, tensor in weights.items():
        _check_real(path, name, tensor)
    return weights


def check_weights_file(path: Path) -> None:
    """Refuse a file of weights that would take more memory than a file may, before it is read.

    Args:
        path: A ``.safetensors`` or ``.pth`` file; an absent one is passed over.

    Raises:
        CheckpointError: If it is too large, unpacks to too much, or asks for blank memory.

    Example:
        >>> check_weights_file(Path("/nowhere/model.safetensors"))
    """
    if not path.is_file():
        return
    check_bytes(path.stat().st_size, str(path))
    if path.suffix == ".safetensors":
        _check_header(path)
        return
    try:
        pickled = _pickle_of(path)
    except CheckpointError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
        raise CheckpointError(
            f"{path} is no readable state dict ({type(error).__name__}); it may be cut short. "
            "Save it again as .safetensors."
        ) from error
    if b"bytearray" in pickled:  # which torch makes of any length that a pickle of 100 bytes names
        raise CheckpointError(
            f"{path} holds a bytearray, which is no tensor; save model.state_dict() again."
        )


def _check_header(path: Path) -> None:
    try:
        with safe_open(path, "pt"):  # reads the header, and holds the file's length against it
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no readable state dict ({str(error)[:100]}); it may be cut short. "
            "Save it again, or download it again."
        ) from error


def _pickle_of(path: Path) -> bytes:
    """What torch.load unpickles of a file: of a zip file's parts those that are no tensors."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        check_bytes(sum(part.file_size for part in archive.infolist()), f"{path} unpacked")
        names = [name for name in archive.namelist() if name.endswith(".pkl")]
        return b"".join(map(archive.read, names))


def _check_real(path: Path, name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not there number by number: a file of 1 kB may declare terabytes."""
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    held = tensor.untyped_storage().nbytes() if plain else 0
    if not plain or tensor.is_complex() or held < tensor.numel() * tensor.element_size():
        raise CheckpointError(
            f"{path}: {str(name)[:80]!r} declares {list(tensor.shape)} of {tensor.dtype}, but does "
            "not hold that many plain numbers; save model.state_dict() of a dense, real model."
        )
