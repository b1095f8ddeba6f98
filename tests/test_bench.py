"""What a model costs, against formulas counted by hand."""

from __future__ import annotations

from itertools import cycle

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

from timm_linop.bench import Cost, count_macs, count_parameters, latencies_ms, latency_ms, machine
from timm_linop.errors import LinOPError, RecipeError

SIZE = (3, 8, 8)


class Clock:
    """Stands until a test moves it: how long a busy machine sleeps is nobody's promise."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that latencies are read from."""
    clock = Clock()
    monkeypatch.setattr("timm_linop.bench.time.perf_counter", clock)
    return clock


class Timed(nn.Module):
    """Takes known times, pass by pass and from the start again, and notes how it was called."""

    def __init__(self, clock: Clock, *milliseconds: float) -> None:
        super().__init__()
        self.clock, self.milliseconds, self.calls = clock, cycle(milliseconds), []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls.append((self.training, torch.is_inference_mode_enabled(), images.shape))
        self.clock.seconds += next(self.milliseconds) / 1e3
        return images


class Product(nn.Module):
    """Composes a weight out of two factors, as a linear chain does."""

    def __init__(self, n: int, hidden: int, m: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(n, hidden))
        self.right = nn.Parameter(torch.randn(hidden, m))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return (self.left @ self.right).view_as(weight)


def small_net() -> nn.Module:
    """A net small enough to be counted by hand: see the tests' numbers."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),  # 8x8 out: 6*3*9 * 64
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),  # 4x4 out: 6*1*9 * 16
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),  # 6*5
    )


@pytest.mark.parametrize(
    ("n", "m", "kernel", "stride", "padding", "groups", "size"),
    [(8, 4, 3, 1, 1, 1, 8), (8, 4, 1, 1, 0, 1, 7), (6, 6, 5, 2, 2, 6, 9), (8, 4, 3, 2, 0, 2, 11)],
)
def test_macs_of_a_convolution(n, m, kernel, stride, padding, groups, size):
    conv = nn.Conv2d(m, n, kernel, stride, padding, groups=groups)
    out = (size + 2 * padding - kernel) // stride + 1
    assert count_macs(conv, (m, size, size)) == n * (m // groups) * kernel**2 * out**2


def test_a_net_counted_by_hand():
    net = small_net()
    assert count_macs(net, SIZE) == 6 * 3 * 9 * 64 + 6 * 9 * 16 + 6 * 5
    assert count_parameters(net) == 6 * 3 * 9 + 2 * 6 + (6 * 9 + 6) + (6 * 5 + 5)
    assert Cost.of(net, SIZE, latency_ms=0.5) == Cost(count_parameters(net), 11262, 0.5, None)


def test_macs_of_attention():
    # Of ViT, per block: qkv 3d*d, projection d*d, mlp 8d*d per token, and 2*d*tokens^2.
    dim, tokens, depth = 32, 4 + 1, 2
    sizes = {"img_size": 16, "patch_size": 8, "num_classes": 7}
    vit = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=dim, num_heads=2, depth=depth, **sizes
    )
    block = 12 * dim**2 * tokens + 2 * dim * tokens**2
    assert count_macs(vit, (3, 16, 16)) == 3 * 64 * dim * 4 + depth * block + dim * 7


def test_macs_of_a_known_model():
    # torchvision and the literature give 1.814 G for ResNet-18 at 224 px.
    assert count_macs(timm.create_model("resnet18"), (3, 224, 224)) == 1_814_073_344


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(layer, layer)) == 20


def test_a_parametrized_model_counts_as_its_slim_one():
    slim, expanded = small_net(), small_net()
    parametrize.register_parametrization(expanded[0], "weight", Product(6, 50, 27))
    assert count_macs(expanded, SIZE) == count_macs(slim, SIZE)
    assert count_parameters(expanded) == count_parameters(slim) + 6 * 50 + 50 * 27
    assert latency_ms(expanded, SIZE, batch_size=2, repeats=2) > 0
    expanded(torch.rand(2, *SIZE)).sum().backward()  # nothing of the count is left in a cache
    assert expanded[0].parametrizations.weight[0].left.grad is not None


@pytest.mark.parametrize("measure", [count_macs, latency_ms])
def test_each_module_gets_its_mode_back(measure):
    net = small_net().train()
    net[1].eval()  # a frozen normalisation inside a training model
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure(net, SIZE)
    assert [module.training for module in net] == [True, False, True, True, True, True, True]
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_mode_comes_back_after_a_crash():
    net = small_net().train()
    with pytest.raises(RuntimeError, match="channels"):
        count_macs(net, (4, 8, 8))
    assert all(module.training for module in net.modules())


def test_latency_is_per_image_and_in_milliseconds(clock):
    net = Timed(clock, 8)
    assert latency_ms(net, SIZE, batch_size=4, repeats=3, warmup=2) == pytest.approx(2)
    assert net.calls == [(False, True, (4, *SIZE))] * 5


def test_the_median_counts_and_the_warm_up_does_not(clock):
    net = Timed(clock, 100, 1, 9, 3)
    assert latency_ms(net, SIZE, batch_size=1, repeats=3, warmup=1) == pytest.approx(3)


def test_models_are_timed_in_turns(clock):
    slow, fast, order = Timed(clock, 4), Timed(clock, 1), []
    slow.register_forward_hook(lambda *_: order.append("slow"))
    fast.register_forward_hook(lambda *_: order.append("fast"))
    timing = latencies_ms({"slow": slow, "fast": fast}, SIZE, batch_size=1, repeats=3, warmup=1)
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert list(timing) == ["slow", "fast"]
    assert timing == pytest.approx({"slow": 4, "fast": 1})


def test_half_precision_runs_in_its_own_dtype():
    net = small_net().to(torch.bfloat16)
    assert count_macs(net, SIZE) == count_macs(small_net(), SIZE)
    assert latency_ms(net, SIZE, batch_size=1, repeats=1, warmup=0) > 0
    assert machine(net)["dtype"] == "bfloat16"


def test_the_machine_is_told_in_plain_strings():
    told = machine()
    assert all(type(value) is str and value for value in told.values())
    assert told["device"] == "cpu"
    assert told["torch"] == torch.__version__
    assert told["threads"] == str(torch.get_num_threads())


@pytest.mark.parametrize("size", [(3, 8), (3, 0, 8), (3, 8, 8.0), (1, 3, 8, 8)])
def test_a_wrong_size_is_named(size):
    with pytest.raises(RecipeError, match="channels, height, width"):
        count_macs(small_net(), size)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"batch_size": 0}])
def test_a_wrong_count_is_named(wrong):
    with pytest.raises(LinOPError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        latency_ms(small_net(), SIZE, **wrong)
