"""What a saved config.json may say: arguments and data settings that are plain, small and ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .checkpoint import WEIGHTS
from .errors import CheckpointError
from .wire import shown

_MAX_SIZE = 1_000_000
_MAX_WINDOW = 64  # some architectures list all pairs of a window's places, in Python
_MAX_IMAGE = 2**24  # numbers; 3 x 2364 x 2364 is more than any timm model takes
_MAX_PARTS, _MAX_DEPTH, _MAX_TEXT = 1_000, 4, 200

_NAME = re.compile(r"[A-Za-z](_?[A-Za-z0-9])*_?")
# Arguments of timm that name a place to read from or to build on; a saved model names none.
_PLACES = {"base", "cache_dir", "checkpoint_path", "device", "dtype", "file", "url", "state_dict"}
_PLACES |= {"hf_hub_id", "hf_hub_filename", "source", "feature_cls"}
# Those that hold a structure and logits, which are read elsewhere.
_READ_ELSEWHERE = {"pruned", "probe"}


def check_saved_args(args: Mapping[str, Any]) -> None:
    """Refuse arguments of a config.json that would read other files or take absurd memory.

    Args:
        args: Its ``model_args``.

    Raises:
        CheckpointError: If one names a path or repo, is no plain value, or a size is absurd.

    Example:
        >>> check_saved_args({"num_classes": 10**12})
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: config.json: num_classes=1000000000000 is no size ...
    """
    if isinstance(args.get("pruned"), str):
        raise CheckpointError(
            f"config.json: pruned={args['pruned'][:80]!r} names a place outside of what was "
            "saved; save the model with timm_linop.save(), which writes its structure."
        )
    for name, value in args.items():
        _check_name(name)
        if name not in _READ_ELSEWHERE:
            _check_plain(name, value)
            _check_numbers(name, value)
    _check_ours(args)
    for name, least in (("num_classes", 0), ("in_chans", 1), ("img_size", 1)):
        if args.get(name) is not None:
            _check_size(name, args[name], least)


def check_saved_cfg(cfg: Mapping[str, Any]) -> None:
    """Refuse data settings of a config.json that would read other files or take absurd memory.

    Args:
        cfg: Its ``pretrained_cfg``.

    Raises:
        CheckpointError: If one names other weights, or a size is absurd.

    Example:
        >>> check_saved_cfg({"input_size": [3, 9000, 9000]})
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: config.json: input_size=[3, 9000, 9000] is over the ...
    """
    for name in ("state_dict", "custom_load", "hf_hub_filename"):
        if cfg.get(name) not in (None, False, "", WEIGHTS):
            raise CheckpointError(
                f"config.json: pretrained_cfg may not hold {name}, which names other weights than "
                "the saved ones; save the model again."
            )
    for name, value in cfg.items():
        _check_numbers(name, value)
    size = cfg.get("input_size")
    whole = isinstance(size, list | tuple) and all(isinstance(part, int) for part in size)
    if whole and math.prod(size) > _MAX_IMAGE:  # type: ignore[arg-type]
        raise CheckpointError(
            f"config.json: input_size={shown(list(size))} is over the {_MAX_IMAGE:,} numbers that "  # type: ignore[arg-type]
            "an image may have; save the model again, with the size it was trained at."
        )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 80:
        raise CheckpointError(
            f"config.json: {name[:80]!r} is no name of an argument; save the model again."
        )
    if name in _PLACES or name.startswith("pretrained"):
        raise CheckpointError(
            f"config.json: model_args may not hold {name!r}, which names a place to read from or "
            "to build on; pass it to timm.create_model yourself, or save the model again."
        )


def _check_plain(name: str, value: Any) -> None:
    """Refuse all but a few short JSON values."""
    parts = list(_parts(value))
    long = any(isinstance(part, str) and len(part) > _MAX_TEXT for part in parts)
    if len(parts) > _MAX_PARTS or long or not all(map(_is_plain, parts)):
        raise CheckpointError(
            f"config.json: {name}={shown(value)} is no plain, short value that an architecture "
            "is built with; save the model again."
        )


def _is_plain(part: Any) -> bool:
    return part is None or isinstance(part, bool | int | float | str)


def _parts(value: Any, depth: int = 0) -> Iterator[Any]:
    """What lists and objects hold in the end; they themselves where they are nested too deeply."""
    if not isinstance(value, list | tuple | dict) or depth > _MAX_DEPTH:
        yield value
        return
    if isinstance(value, dict):
        yield from value
        value = value.values()
    for part in value:
        yield from _parts(part, depth + 1)


def _check_numbers(name: str, value: Any) -> None:
    largest = _MAX_WINDOW if "window" in name or "resolution" in name else _MAX_SIZE
    for part in _parts(value):
        if isinstance(part, int | float) and not -largest <= part <= largest:  # NaN is refused
            raise CheckpointError(
                f"config.json: {name[:80]}={shown(value)} is no size a model can have (over "
                f"{largest:,}, or no number); save the model again."
            )


def _check_ours(args: Mapping[str, Any]) -> None:
    kinds = {"rate": int | float, "init": str, "seed": int | None}
    for name, kind in kinds.items():
        if name in args and (isinstance(args[name], bool) or not isinstance(args[name], kind)):
            raise CheckpointError(
                f"config.json: {name}={shown(args[name])} says nothing of an expansion; save the "
                "model again."
            )


def _check_size(name: str, value: Any, least: int) -> None:
    sizes = value if isinstance(value, list | tuple) and name == "img_size" else [value]
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if not whole or not 1 <= len(sizes) <= 2 or min(sizes) < least:
        raise CheckpointError(
            f"config.json: {name}={shown(value)} is no whole number of at least {least}; save "
            "the model again."
        )
    if name == "img_size" and math.prod(sizes if len(sizes) == 2 else sizes * 2) > _MAX_IMAGE:
        raise CheckpointError(
            f"config.json: {name}={shown(value)} is over the {_MAX_IMAGE:,} numbers that an image "
            "may have; save the model again, with the size it was trained at."
        )
