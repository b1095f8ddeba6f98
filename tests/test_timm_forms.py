"""A twin in the forms that timm's models are used in: files, copies, formats, traces, exports."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from jaxtyping import config
from safetensors.torch import load_file, save_file
from torch.jit.frontend import FrontendError

from tests.slims import CLASSES, images, slim, twin
from tests.test_timm_contract import RATE, both_forms, families, made, relative_error
from timm_linop.expand import contract, is_expanded
from timm_linop.structure import Structure


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' own check of annotations: within a trace sizes are tensors, too."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@families
def test_an_expanded_state_dict_goes_round_through_safetensors(name: str, tmp_path: Path) -> None:
    one, x = made(name), images(name)
    other = twin(name, Structure.of(slim(name)), rate=RATE, seed=1, num_classes=CLASSES)
    save_file(one.state_dict(), tmp_path / "wide.safetensors")
    other.load_state_dict(load_file(tmp_path / "wide.safetensors"), strict=True)
    assert torch.equal(other(x), one(x))


@families
def test_a_deep_copy_stands_alone(name: str) -> None:
    wide, x = made(name), images(name)
    logits, twin_of_it = wide(x), copy.deepcopy(wide)
    assert torch.equal(twin_of_it(x), logits)
    contract(twin_of_it)
    assert is_expanded(wide) and torch.equal(wide(x), logits)


@both_forms
@families
def test_channels_last_and_bfloat16(name: str, rate: float) -> None:
    built, x = made(name, rate), images(name)
    logits = built(x)
    built.to(memory_format=torch.channels_last)
    assert relative_error(built(x.to(memory_format=torch.channels_last)), logits) < 1e-5
    half = built.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    # bfloat16 holds 3 digits, and the slim model alone is off by as much
    assert relative_error(half.float(), logits) < 0.05


@both_forms
@families
@pytest.mark.usefixtures("unchecked")
def test_tracing(name: str, rate: float) -> None:
    built, x = made(name, rate), images(name)
    with torch.no_grad():
        traced = torch.jit.trace(built, x, check_trace=False)
        assert relative_error(traced(x), built(x)) < 1e-5


@families
def test_scripting_takes_the_contracted_model(name: str) -> None:
    wide, x = made(name, scriptable=True), images(name)
    with pytest.raises((RuntimeError, FrontendError)):  # torch scripts no parametrized module
        torch.jit.script(wide)
    scripted = torch.jit.script(contract(wide))
    assert relative_error(scripted(x), slim(name)(x)) < 1e-5


@families
def test_exporting_the_contracted_model(name: str) -> None:
    wide, x = made(name, exportable=True), images(name)
    program = torch.export.export(contract(wide), (x,))
    assert relative_error(program.module()(x), slim(name)(x)) < 1e-5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_capturing_and_differentiating(name: str) -> None:
    """What torch.compile does before it writes C++: one graph, forward and backward."""
    built, x = made(name), images(name)
    captured = torch.compile(copy.deepcopy(built), backend="aot_eager", fullgraph=True)
    for model in (built, captured):
        model(x).square().sum().backward()
    for expected, got in zip(built.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiling() -> None:
    built, x = made("test_resnet"), images("test_resnet")
    with torch.no_grad():
        assert relative_error(torch.compile(built)(x), built(x)) < 1e-5
