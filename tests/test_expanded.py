"""An expanded model in use: checkpoints, copies, autocast, the compiler, processes, meta."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import jaxtyping
import pytest
import timm
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel

from timm_linop.expand import audit, contract, expand, is_expanded
from timm_linop.expanded import chain_of, factors_of

from .test_chain import relative


def net(seed: int = 0) -> nn.Sequential:
    """Dense, depthwise, grouped, 1x1 and linear layers, in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.Conv2d(4, 6, 1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).double()


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 12, 12, dtype=torch.float64)


def step(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_state_dict_goes_round_strictly() -> None:
    one, other, x = expand(net(0), rate=2, seed=0), expand(net(1), rate=2, seed=1), images()
    state = {key: value.clone() for key, value in one.state_dict().items()}
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(state, strict=True)
    assert torch.equal(one(x), other(x))
    with pytest.raises(RuntimeError, match=r"Missing key.*original1"):
        del state["0.parametrizations.weight.original1"]
        other.load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_an_expanded_model_loads_a_slim_checkpoint_strictly_and_equals_it(
    prefix: bool, assign: bool
) -> None:
    slim, model, x = net(1), expand(net(0), rate=2), images()
    if prefix:
        slim, model = nn.Sequential(slim), nn.Sequential(model)
    checkpoint = slim.state_dict()
    keys = list(checkpoint)
    model.load_state_dict(checkpoint, strict=True, assign=assign)
    assert list(checkpoint) == keys  # the caller's own is not touched
    assert relative(model(x), slim(x)) <= 1e-12
    assert is_expanded(model) and all(p.requires_grad for p in model.parameters())
    step(model, x)  # and trains on
    assert relative(model(x), slim(x)) > 1e-6


def test_a_slim_float32_checkpoint_loads_into_a_float32_timm_model() -> None:
    slim = timm.create_model("test_efficientnet").eval()
    model = expand(timm.create_model("test_efficientnet").eval(), rate=2)
    x = torch.randn(2, 3, 64, 64)
    model.load_state_dict(slim.state_dict(), strict=True)
    assert relative(model(x), slim(x)) <= 1e-5


def test_a_checkpoint_of_another_shape_or_name_is_refused_as_torch_does() -> None:
    model = expand(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(RuntimeError, match=r"Missing key.*original0"):
        model.load_state_dict(nn.Sequential(nn.Linear(4, 2)).state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*1\.weight"):
        model.load_state_dict(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)).state_dict())


def test_an_ema_copy_follows_trains_and_contracts_by_itself() -> None:
    model, x = expand(net(), rate=2), images()
    start = [p.detach().clone() for p in model.parameters()]
    ema = ModelEmaV3(model, decay=0.75)
    step(model, x)
    ema.update(model)
    for average, old, new in zip(ema.module.parameters(), start, model.parameters(), strict=True):
        torch.testing.assert_close(average, 0.75 * old + 0.25 * new)
    averaged = ema.module(x)
    contract(ema.module)
    assert relative(ema.module(x), averaged) <= 1e-12
    assert list(ema.module.state_dict()) == list(net().state_dict())
    assert is_expanded(model)
    before = model(x)
    step(model, x)
    assert relative(model(x), before) > 1e-6
    step(copy.deepcopy(model), x)  # a copy of a copy has parameters of its own
    contract(model)
    assert relative(model(x), ema.module(x)) > 1e-6


def test_a_bfloat16_autocast_run_trains_float32_factors() -> None:
    model = expand(net().float(), rate=2)
    plain = [layer.weight.detach() for layer in model if chain_of(layer)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = [layer.weight.detach() for layer in model if chain_of(layer)]
        y = model(images().float())
    assert y.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
    y.float().square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_keeps_its_type_and_nearly_its_outputs(dtype: torch.dtype) -> None:
    slim, x = net().to(dtype), images().to(dtype)
    model = expand(copy.deepcopy(slim), rate=2)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert relative(model(x), slim(x)) <= 10 * torch.finfo(dtype).eps
    assert {p.dtype for p in contract(model).parameters()} == {dtype}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_compiler_gives_the_same_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tests' own checks of shapes are nothing to compile; the compiler of torch 2.6 cannot.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.SiLU(), nn.Flatten(), nn.Linear(600, 2))
    model, x = expand(model.double(), rate=1), images()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    ours, theirs = model(x), compiled(x)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    ours.sum().backward(), theirs.sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-12, atol=1e-12)


def work(rank: int, folder: str) -> None:
    """One of two processes: half of the batch, gradients averaged."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    # Buckets of every size: 1 MB takes all, a few bytes takes each factor alone.
    for size in (1.0, 1e-4):
        model = DistributedDataParallel(expand(net(), rate=2, seed=0), bucket_cap_mb=size)
        for _ in range(2):  # the buckets are rebuilt after the first step
            model.zero_grad()
            torch.manual_seed(7)
            model(images().chunk(2)[rank]).square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in model.module.parameters()], Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def test_two_processes_get_the_gradients_of_one_and_no_strides_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.set_forkserver_preload([__name__])  # torch and timm are imported once for both
    start_processes(work, (str(tmp_path),), nprocs=2, start_method="forkserver")
    assert "strides do not match" not in capfd.readouterr().err
    model = expand(net(), rate=2, seed=0)
    torch.manual_seed(7)
    model(images()).square().mean().backward()
    gradients = torch.load(tmp_path / "gradients.pt")
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rate", [1.5, 3])
def test_gradients_have_the_strides_of_their_factors(rate: float) -> None:
    """What makes DistributedDataParallel copy its buckets, seen without processes."""
    model = expand(net(), rate=rate)
    model(images()).sum().backward()
    for layer in model:
        for factor in factors_of(layer) if chain_of(layer) else ():
            assert factor.grad.stride() == factor.stride()


@pytest.mark.parametrize("init", ["orthogonal", "normal", "balanced"])
def test_on_the_meta_device_shapes_are_right_and_nothing_is_computed(init: str) -> None:
    with torch.device("meta"):
        empty = expand(net(), rate=1.5, init=init)
    full = expand(net(), rate=1.5, init=init, seed=0)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert audit(empty) == audit(full)
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in full.state_dict().items()
    }
    assert empty(images().to("meta")).shape == (4, 5)
    x = images()
    empty.load_state_dict(full.state_dict(), assign=True)
    assert torch.equal(empty(x), full(x))


def test_a_meta_model_takes_a_slim_checkpoint() -> None:
    slim, x = net(), images()
    with torch.device("meta"):
        model = expand(net(1), rate=2)
    model.load_state_dict(slim.state_dict(), strict=True, assign=True)
    assert relative(model(x), slim(x)) <= 1e-12
    model = contract(model)
    assert relative(model(x), slim(x)) <= 1e-12 and list(model.state_dict()) == list(
        slim.state_dict()
    )


@pytest.mark.parametrize("init", ["orthogonal", "normal", "balanced"])
def test_the_default_device_has_no_say_in_the_draw(init: str) -> None:
    plain, elsewhere = expand(net(), rate=2, init=init, seed=3), net()
    slim = elsewhere.state_dict()
    with torch.device("meta"):
        expand(elsewhere, rate=2, init=init, seed=3)
        elsewhere.load_state_dict(slim)
    for ours, theirs in zip(plain.parameters(), elsewhere.parameters(), strict=True):
        assert torch.equal(ours, theirs)
