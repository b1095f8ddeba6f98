"""linop_*: every timm architecture again, with ``pruned``, ``rate`` and ``init`` beside its own.

    timm.create_model("linop_resnet50", pruned="runs/pruned", rate=3, init="orthogonal")

``rate=0`` is the slim model itself, which is what a saved config.json names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import timm
from timm.models import (
    _builder,
    get_pretrained_cfg,
    load_pretrained,
    model_entrypoint,
    register_model,
)
from torch import nn

from .architecture import PREFIX, dense_model, tensors_of
from .errors import CheckpointError
from .expand import check_settings, expand
from .source import Source, resolve

ALIASES = {"linop_mobilenetv2": "mobilenetv2_100"}

# timm reads these two off the module of an entrypoint when it is registered.
__all__ = ["ALIASES", "register_twins"]
default_cfgs: dict[str, Any] = {}


def register_twins() -> None:
    """Register ``linop_X`` for every architecture X that timm has now; harmless when repeated."""
    twins = {PREFIX + base: base for base in timm.list_models(exclude_filters=f"{PREFIX}*")}
    for name, base in (twins | ALIASES).items():
        if not timm.is_model(name):
            default_cfgs[name] = _dense_cfg(base)
            register_model(_entrypoint(name, base))


def _dense_cfg(base: str) -> dict[str, Any]:
    """The base's data and head settings; its weights are not the twin's."""
    cfg = get_pretrained_cfg(base)
    if cfg is None:
        return {}
    blank = replace(cfg, url=None, file=None, hf_hub_id=None, hf_hub_filename=None, source=None)
    return {k: v for k, v in vars(blank).items() if k not in ("architecture", "tag")}


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
    *,
    pretrained: bool = False,
    pruned: Any = None,
    rate: float = 3,
    init: str = "orthogonal",
    seed: int | None = None,
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
        pretrained_cfg_overlay: As timm's.
        **kwargs: Whatever timm takes for this architecture.

    Returns:
        The expanded model (``rate >= 1``) or the slim one (``rate=0``).

    Raises:
        ExpansionError: If ``rate`` or ``init`` is out of range.
        StructureError: If ``pruned`` is no slim form of ``base``.
        CheckpointError: If weights cannot be read or do not fit.
    """
    if rate != 0:
        check_settings(rate, init)
    source = resolve(pruned, base)
    if pretrained and source.structure and not source.weights and not kwargs.get("pretrained_cfg"):
        raise CheckpointError(
            f"pretrained=True has no weights for a bare structure of {base}; pass pruned= a "
            "folder, a checkpoint or a module, or pretrained=False."
        )
    kwargs = {**source.model_args, **kwargs}
    if source.pretrained_cfg is not None:
        kwargs.setdefault("pretrained_cfg", {**source.pretrained_cfg, "architecture": base})
    overlay = {"architecture": PREFIX + base, **(pretrained_cfg_overlay or {})}
    with _adapting(source, kwargs.get("in_chans", 3)) as adapt_flag:
        model = model_entrypoint(base)(
            pretrained=pretrained and source.weights is None,
            pretrained_cfg_overlay=overlay,
            **({} if base.endswith("_pruned") else adapt_flag),
            **kwargs,
        )
    return expand(model, rate, init, seed=seed) if rate != 0 else model


_swap = threading.RLock()


@contextmanager
def _adapting(source: Source, in_chans: int) -> Iterator[dict[str, bool]]:
    """Apply a source where timm applies its own pruned structures.

    That is after construction and before pretrained weights and the features_only wrapper, and
    timm has no public hook there: `_builder.adapt_model_from_file`, called when ``pruned=True``, is
    replaced while one of ours is being built. Yields the argument that makes timm call it.
    """
    structure = source.structure
    if structure is None:
        yield {}
        return
    timms_own = _builder.adapt_model_from_file

    def adapt(model: nn.Module, variant: str) -> nn.Module:
        if variant.endswith("_pruned"):
            model = timms_own(model, variant)
        structure.build(model)
        if source.weights is not None:
            _load(model, structure.base, source, in_chans)
        return model

    with _swap:
        _builder.adapt_model_from_file = adapt
        try:
            yield {"pruned": True}
        finally:
            _builder.adapt_model_from_file = timms_own


def _load(model: Any, base: str, source: Source, in_chans: int) -> None:
    """Load the source's weights as timm loads pretrained ones: new head, adapted first layer."""
    classes = source.model_args.get("num_classes", (source.pretrained_cfg or {}).get("num_classes"))
    num_classes = getattr(model, "num_classes", 0)  # a features_only backbone has none
    cfg = {
        **model.pretrained_cfg,
        **dict.fromkeys(("url", "file", "hf_hub_id", "source")),
        "state_dict": _without_absent_layers(model, base, source.weights or {}),
        "num_classes": num_classes if classes is None else classes,
    }
    try:
        load_pretrained(model, cfg, num_classes=num_classes, in_chans=in_chans)
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
    foreign = extra and extra - {name for name, _ in tensors_of(dense_model(base))}
    if foreign:
        raise CheckpointError(
            f"the weights hold {min(foreign)!r}, which {base} has not ({len(foreign)} such "
            "tensors); they belong to another architecture."
        )
    return {name: tensor for name, tensor in weights.items() if name not in extra}
