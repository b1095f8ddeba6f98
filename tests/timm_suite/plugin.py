"""A pytest plugin: where timm's tests list models, they get the slim and expanded twins."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn

import timm_linop  # noqa: F401  (registers the twins)
from timm_linop.expanded import chain_of
from timm_linop.structure import Structure

from . import known, twins

LIST_MODELS = timm.list_models


def pytest_configure(config: pytest.Config) -> None:
    """Put the twins in place before timm's tests are collected."""
    config.addinivalue_line("markers", "timeout: timm's limit of seconds; not enforced here")
    torch.set_num_threads(1)
    twins.register()
    timm.list_models = _twins_of(LIST_MODELS)
    # Published weights, whose logits are on the Hub: they say nothing of twins.
    timm.list_pretrained = lambda *args, **kwargs: []


def _through_twins(create_model: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Build what timm's tests name themselves as its twin, slim to its own full size.

    So these tests, too, go through all that `registry.build` does to a model.
    """

    @functools.wraps(create_model)
    def create(model_name: str, *args: Any, **kwargs: Any) -> nn.Module:
        base = model_name.partition(".")[0]
        if base.startswith("linop_") or not timm.is_model(f"linop_{base}"):
            return create_model(model_name, *args, **kwargs)
        whole = {"pruned": Structure(base), "rate": 0}
        return create_model(f"linop_{base}", *args, **whole, **kwargs)

    return create


def _twins_of(list_models: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Answer as timm does for our bases, but with the names of their twins.

    So each twin meets exactly the tests that timm has for its base, whatever filters choose it.
    """

    def listed(*args: Any, **kwargs: Any) -> list[str]:
        found = {name.partition(".")[0] for name in list_models(*args, **kwargs)}
        return [twin for base in twins.BASES if base in found for twin in twins.names_of(base)]

    return listed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is known to fail, and let timm's tests build the models they name as twins.

    Only the module of the tests is changed: what it lists is collected by now.
    """
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        module.create_model = _through_twins(module.create_model)
        module.list_models = timm.list_models = LIST_MODELS
    for item in items:
        if why := known.reason_of(item.name, _of_wide_twin(item)):
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))


@pytest.fixture(autouse=True)
def _weights_by_their_slim_names(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Show ``fc.weight`` beside its factors to the tests that look whether the key is there.

    An expanded model's state dict holds factors only, by design. All else that these tests check
    is checked on the model as it is.
    """
    if _of_wide_twin(request.node) and "default_cfgs" in request.node.name:
        monkeypatch.setattr(nn.Module, "state_dict", _with_products(nn.Module.state_dict))
    yield


def _of_wide_twin(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and str(callspec.params.get("model_name")).startswith("linop_wide_")


def _with_products(state_dict: Callable[..., Any]) -> Callable[..., Any]:
    def with_products(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state = state_dict(self, *args, **kwargs)
        if "destination" not in kwargs:  # the outermost call
            layers = [(n, m) for n, m in self.named_modules() if chain_of(m) is not None]
            state |= {f"{name}.weight": layer.weight for name, layer in layers}
        return state

    return with_products
