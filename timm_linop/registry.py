"""linop_*: every timm architecture again, with ``pruned``, ``rate`` and ``init`` beside its own.

    timm.create_model("linop_resnet50", pruned="runs/pruned", rate=3, init="orthogonal")

``rate=0`` is the slim model itself, which is what a saved config.json names.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    _builder,
    get_pretrained_cfg,
    load_pretrained,
    model_entrypoint,
    register_model,
)
from torch import nn

from . import proof
from .architecture import ALIASES, PREFIX, dense_model, tensors_of, whole_model
from .errors import CheckpointError, LinOPError, StructureError
from .expand import check_settings, expand
from .memory import check_expansion, check_model
from .named import check_named_config, check_named_weights
from .saved import check_saved_args, check_saved_cfg
from .source import Source, resolve

# timm reads these two off the module of an entrypoint when it is registered.
__all__ = ["register_twins"]
default_cfgs: dict[str, Any] = {}


def register_twins() -> None:
    """Register ``linop_X`` for every architecture X that timm has now; harmless when repeated."""
    twins = {PREFIX + base: base for base in timm.list_models(exclude_filters=f"{PREFIX}*")}
    for name, base in (twins | ALIASES).items():
        if not timm.is_model(name):
            default_cfgs[name] = _dense_cfg(base)
            register_model(_entrypoint(name, base))
            __all__.pop()  # where timm adds the name, which is no name of this module


def _dense_cfg(base: str) -> DefaultCfg:
    """The base's data and head settings; its weights are not the twin's.

    Read where the base itself was registered from: timm's own reader copies each deeply, which
    over 1,300 architectures is most of the time that importing this package takes.
    """
    module = sys.modules[model_entrypoint(base).__module__]
    cfg = getattr(module, "default_cfgs", {}).get(base)
    dense = cfg.default if isinstance(cfg, DefaultCfg) else get_pretrained_cfg(base)
    blank = replace(dense or PretrainedCfg(), **dict.fromkeys(_WHERE_WEIGHTS_ARE))
    return DefaultCfg(tags=deque([""]), cfgs={"": blank})


_WHERE_WEIGHTS_ARE = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict")


def _entrypoint(name: str, base: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(base, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    entrypoint.__doc__ = (
        f"timm's {base}, slim or over-parameterised; see timm_linop.registry.build."
    )
    return entrypoint


def build(
    base: str,
    /,
    *,
    pretrained: bool = False,
    pruned: Any = None,
    rate: float = 3,
    init: str = "orthogonal",
    seed: int | None = None,
    probe: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build what ``timm.create_model("linop_<base>", ...)`` returns.

    Args:
        base: timm's architecture.
        pretrained: As timm's: load the weights that the config names; for a plain name, the dense
            backbone's own.
        pruned: What to slim the backbone to, see `timm_linop.source.resolve`; None keeps it dense.
        rate: Expansion rate; 0 gives the slim model itself.
        init: See `timm_linop.expand`.
        seed: See `timm_linop.expand`.
        probe: Logits that a saved config.json carries to check a reload with.
        pretrained_cfg_overlay: As timm's.
        **kwargs: Whatever timm takes for this architecture.

    Returns:
        The expanded model (``rate >= 1``) or the slim one (``rate=0``).

    Raises:
        ExpansionError: If ``rate`` or ``init`` is out of range.
        StructureError: If ``pruned`` is no slim form of ``base``.
        CheckpointError: If weights or a config.json cannot be read or do not fit.
    """
    named = _check_saved(kwargs, pretrained)
    if rate != 0:
        check_settings(rate, init)
    source = resolve(pruned, base)
    overlay = {"architecture": PREFIX + base, **named, **(pretrained_cfg_overlay or {})}
    located = any((pretrained_cfg_overlay or {}).get(key) for key in _LOCATIONS)
    told = located or source.weights or kwargs.get("pretrained_cfg")
    if pretrained and source.structure and not told:
        raise CheckpointError(
            f"pretrained=True has no weights for a bare structure of {base}; pass pruned= a "
            "folder, a checkpoint or a module, or pretrained=False."
        )
    settings = {**source.model_args, **kwargs}
    if source.pretrained_cfg is not None and not settings.get("pretrained_cfg"):
        settings["pretrained_cfg"] = {**source.pretrained_cfg, "architecture": base}
    load = pretrained and (located or source.weights is None)
    try:
        if named or isinstance(pruned, str | Path):  # from a file that nobody vouches for
            check_model(base, {k: v for k, v in settings.items() if k not in ("device", "dtype")})
        model = _slim(base, source, pretrained=load, pretrained_cfg_overlay=overlay, **settings)
    except LinOPError:
        raise
    except Exception as error:
        if source.structure is not None or named:
            _blame_file(base, kwargs, error)
        raise
    if load or source.weights is not None:
        saved = kwargs.get("pretrained_model_args") or source.model_args
        _check_reload(model, source.probe or probe, saved, kwargs)
    # timm's factory records what it was called with; the source's own arguments came in here.
    model._model_args = {k: v for k, v in settings.items() if k not in _RUNTIME}
    if rate == 0:
        return model
    if named:
        check_expansion(model, rate)
    return expand(model, rate, init, seed=seed)


# Where a caller's own overlay may say that weights lie; those go before the source's.
_LOCATIONS = ("url", "file", "state_dict", "hf_hub_id")
# Arguments that say nothing of the architecture.
_RUNTIME = ("pretrained_cfg", "pretrained_model_args", "cache_dir", "device", "dtype")
# Those that leave the logits in eval mode as they are.
_HARMLESS = ("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate")


def _check_reload(
    model: nn.Module, probe: Any, saved: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> None:
    """Hold a reloaded model against its stored logits, if it was asked for as it was saved."""
    asked = {k: v for k, v in kwargs.items() if k not in (*_RUNTIME, *_HARMLESS)}
    as_saved = all(saved.get(key, value) == value for key, value in asked.items())
    as_saved &= not asked.keys() - saved.keys()
    weight = next(model.parameters())
    if probe is not None and as_saved and weight.dtype == torch.float32 and weight.is_cpu:
        proof.check(model, probe, type(model).__name__)


def _slim(base: str, source: Source, **settings: Any) -> Any:
    """Call timm's own entrypoint, which applies the source on the way."""
    with _adapting(source, settings.get("in_chans")) as adapt_flag:
        # timm's own *_pruned entrypoints pass that flag themselves.
        flag = {} if base.endswith("_pruned") else adapt_flag
        return model_entrypoint(base)(**flag, **settings)


def _check_saved(kwargs: Mapping[str, Any], pretrained: bool) -> dict[str, Any]:
    """Check what timm's factory has read from a config.json; tell where alone its weights lie."""
    args, cfg = kwargs.get("pretrained_model_args"), kwargs.get("pretrained_cfg")
    cache_dir, named = kwargs.get("cache_dir"), {}
    if isinstance(cfg, dict) and cfg.get("source") in ("local-dir", "hf-hub"):
        named = check_named_config(cfg, cache_dir)  # first: a newer one may hold anything
        check_saved_cfg(cfg)
    if isinstance(args, dict):
        check_saved_args(args)
    if named and pretrained:
        check_named_weights(named, cache_dir)
    return named


def _blame_file(base: str, kwargs: Mapping[str, Any], error: Exception) -> None:
    """Raise an error of ours, unless timm refuses what the caller asked for also without a file."""
    read = {"pretrained_cfg", "cache_dir", "pretrained_model_args"}
    read |= set(kwargs.get("pretrained_model_args") or {})
    try:
        dense_model(base, **{k: v for k, v in kwargs.items() if k not in read})
    except Exception:
        return
    # torch lists each tensor that does not fit on a line of its own
    reason = (str(error).strip().splitlines() or [""])[-1].strip()
    raise CheckpointError(
        f"the saved {base} cannot be built ({type(error).__name__}: {reason[:200]}): its "
        "config.json and its weights contradict each other or were changed since; save the model "
        "again with timm_linop.save()."
    ) from error


_swap = threading.RLock()


@contextmanager
def _adapting(source: Source, in_chans: int | None) -> Iterator[dict[str, bool]]:
    """Apply a source where timm applies its own pruned structures.

    That is after construction and before pretrained weights and the features_only wrapper, and
    timm has no public hook there: `_builder.adapt_model_from_file`, called when ``pruned=True``, is
    replaced while one of ours is being built. Yields the argument that makes timm call it. What
    else is built meanwhile, in other threads or by this build itself, gets timm's own.
    """
    structure = source.structure
    if structure is None:
        yield {}
        return
    thread, adapted = threading.get_ident(), False

    def adapt(model: nn.Module, variant: str) -> nn.Module:
        nonlocal adapted
        if adapted or threading.get_ident() != thread:
            return timms_own(model, variant)
        adapted = True
        if variant.endswith("_pruned"):
            model = timms_own(model, variant)
        structure.build(model)
        if source.weights is not None:
            _load(model, structure.base, source, in_chans)
        return model

    with _swap:
        replaced = _builder.adapt_model_from_file
        timms_own = getattr(replaced, "timms_own", replaced)
        adapt.timms_own = timms_own  # type: ignore[attr-defined]
        _builder.adapt_model_from_file = adapt
        try:
            yield {"pruned": True}
        finally:
            _builder.adapt_model_from_file = replaced
    if not adapted:
        raise StructureError(
            f"timm builds {structure.base} without its common builder, so it cannot be slimmed; "
            "leave pruned= out."
        )


def _load(model: Any, base: str, source: Source, in_chans: int | None) -> None:
    """Load the source's weights as timm loads pretrained ones: new head, adapted first layer."""
    args, input_size = source.model_args, model.pretrained_cfg["input_size"]
    num_classes = getattr(model, "num_classes", 0)  # a features_only backbone has none
    cfg = {
        **model.pretrained_cfg,
        **dict.fromkeys(("url", "file", "hf_hub_id", "source")),
        "state_dict": _without_absent_layers(model, base, source.weights or {}),
        "num_classes": args.get("num_classes", num_classes),
        "input_size": (args.get("in_chans", input_size[0]), *input_size[1:]),
        "label_offset": 0,  # the weights have had it taken off
    }
    try:
        load_pretrained(model, cfg, num_classes=num_classes, in_chans=in_chans or input_size[0])
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"the weights do not fit the slim {base}: {lines[-1].strip()} "
            "They belong to another model than the structure; save both together with save()."
        ) from error


def _without_absent_layers(
    model: nn.Module, base: str, weights: Mapping[str, Any]
) -> dict[str, Any]:
    """Drop the weights of layers this form of the architecture is built without (features_only)."""
    extra = set(weights) - {name for name, _ in tensors_of(model)}
    foreign = extra and extra - {name for name, _ in tensors_of(whole_model(base))}
    if foreign:
        raise CheckpointError(
            f"the weights hold {min(foreign)!r}, which {base} has not ({len(foreign)} such "
            "tensors); they belong to another architecture."
        )
    return {name: tensor for name, tensor in weights.items() if name not in extra}
