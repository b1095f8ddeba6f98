"""What a model costs: parameters, multiply-adds, milliseconds per image, and on which machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from timm_linop.errors import RecipeError


@dataclass(frozen=True)
class Cost:
    """The cost of one model.

    Attributes:
        parameters: Trainable and frozen parameters, shared ones once.
        macs: Multiply-adds of one image's forward pass.
        latency_ms: Median milliseconds per image, or None where it was not measured.
        size_bytes: Size of the weights file, or None where there is no file.
    """

    parameters: int
    macs: int
    latency_ms: float | None = None
    size_bytes: int | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        input_size: tuple[int, int, int],
        *,
        latency_ms: float | None = None,
        size_bytes: int | None = None,
    ) -> Cost:
        """Count a model's parameters and multiply-adds; what needs a clock or a file is given.

        Example:
            >>> Cost.of(nn.Conv2d(3, 8, 3), (3, 6, 6), size_bytes=1024)
            Cost(parameters=224, macs=3456, latency_ms=None, size_bytes=1024)
        """
        parameters, macs = count_parameters(model), count_macs(model, input_size)
        return cls(parameters, macs, latency_ms, size_bytes)


def count_parameters(model: nn.Module) -> int:
    """Count a model's parameters, trainable or not; one shared by two layers counts once.

    An expanded model counts its factors, not the weights they compose.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Count the multiply-adds of one image's forward pass.

    Convolutions, products of matrices and attention are counted; biases, normalisations and
    activations are not. An expanded model counts what its slim model does: composing the weights
    happens once per step, whatever the batch, so it is no part of an image's cost.

    Args:
        model: Any model of images, in any mode; its mode is restored.
        input_size: Channels, height and width of the image.

    Raises:
        RecipeError: ``input_size`` is not three positive whole numbers.

    Example:
        A convolution costs ``n * m * kh * kw`` per output pixel, here ``8 * 3 * 3 * 3`` at 4 x 4:

        >>> count_macs(nn.Conv2d(3, 8, 3), (3, 6, 6))
        3456
    """
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), parametrize.cached():
        image = _images(model, input_size, batch_size=1)
        model(image)  # composes and caches the parametrized weights, so that they are not counted
        # In products of matrices: torch 2.6 does not count the CPU's own kernel of attention.
        with sdpa_kernel(SDPBackend.MATH), counter:
            model(image)
    return int(counter.get_total_flops()) // 2


def latency_ms(
    model: nn.Module,
    input_size: tuple[int, int, int],
    *,
    batch_size: int = 32,
    repeats: int = 10,
    warmup: int = 3,
) -> float:
    """Measure the median milliseconds per image of a forward pass, on the model's own device.

    To compare models, use :func:`latencies_ms`: two calls of this one see two different moments of
    a noisy machine.

    Args:
        model: Any model of images, in any mode; its mode is restored.
        input_size: Channels, height and width of an image.
        batch_size: Images per forward pass.
        repeats: Timed passes, of which the median counts.
        warmup: Passes before the clock starts.

    Raises:
        RecipeError: A size or a count is out of range.

    Example:
        >>> latency_ms(nn.Conv2d(3, 8, 3), (3, 6, 6), batch_size=2, repeats=3) > 0
        True
    """
    timing = latencies_ms(
        {"model": model}, input_size, batch_size=batch_size, repeats=repeats, warmup=warmup
    )
    return timing["model"]


def latencies_ms(
    models: Mapping[str, nn.Module],
    input_size: tuple[int, int, int],
    *,
    batch_size: int = 32,
    repeats: int = 10,
    warmup: int = 3,
) -> dict[str, float]:
    """Measure several models side by side, so that their ratios are fair on a noisy machine.

    Every repeat times each model once, there and back in turns, so a slow moment of the machine
    falls on all of them.

    Args:
        models: The models by name; each runs in eval mode on its own device.
        input_size: Channels, height and width of an image.
        batch_size: Images per forward pass.
        repeats: Timed passes of each model, of which the median counts.
        warmup: Passes of each model before the clock starts.

    Returns:
        Median milliseconds per image, by name.

    Raises:
        RecipeError: A size or a count is out of range.

    Example:
        >>> nets = {"narrow": nn.Conv2d(3, 8, 3), "wide": nn.Conv2d(3, 512, 3)}
        >>> ms = latencies_ms(nets, (3, 32, 32), batch_size=4)
        >>> ms["narrow"] < ms["wide"]
        True
    """
    for what, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise RecipeError(f"{what}={value} is out of range; give {least} or more.")
    inputs = {name: _images(model, input_size, batch_size) for name, model in models.items()}
    passes = {name: partial(model, inputs[name]) for name, model in models.items()}
    with ExitStack() as modes, torch.inference_mode():
        for model in models.values():
            modes.enter_context(evaluating(model))
        times = medians(passes, repeats, warmup)
    return {name: 1e3 * seconds / batch_size for name, seconds in times.items()}


def medians(
    works: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1
) -> dict[str, float]:
    """Run pieces of work in turns, there and back, and take the median seconds of each.

    Args:
        works: Name to what is to be done.
        repeats: Timed runs of each.
        warmup: Runs of each before the clock starts.

    Returns:
        Median seconds by name.

    Example:
        >>> found = medians({"little": lambda: sum(range(9)), "much": lambda: sum(range(10**6))}, 3)
        >>> found["little"] < found["much"]
        True
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(warmup + repeats):
        for name in list(works)[:: 1 if turn % 2 == 0 else -1]:
            passed = seconds_of(works[name])
            if turn >= warmup:
                seconds[name].append(passed)
    return {name: statistics.median(each) for name, each in seconds.items()}


def seconds_of(work: Callable[[], object]) -> float:
    """Time one run, waiting for an accelerator to have really done it.

    Example:
        >>> seconds_of(lambda: None) < 1
        True
    """
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def machine(model: nn.Module | None = None) -> dict[str, str]:
    """Name the machine that figures were measured on.

    Args:
        model: The model that was measured: its device and dtype are named. Without one, torch's
            defaults are.

    Returns:
        Plain strings: cpu, threads, device, dtype, python, torch, timm.

    Example:
        >>> list(machine())
        ['cpu', 'threads', 'device', 'dtype', 'python', 'torch', 'timm']
        >>> machine(nn.Linear(2, 2, dtype=torch.float64))["dtype"]
        'float64'
    """
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    if model is not None:
        device, dtype = _place(model)
    cuda = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "cpu": _cpu_name(),
        "threads": str(torch.get_num_threads()),
        "device": device.type + cuda,
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": version("timm"),
    }


def _cpu_name() -> str:
    """Read the processor's name where Linux keeps it, else what Python knows of it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Find a model's device and floating dtype: those of its first floating parameter."""
    floating = (p for p in model.parameters() if p.is_floating_point())
    first = next(floating, torch.empty(0))
    return first.device, first.dtype


def _images(model: nn.Module, input_size: tuple[int, int, int], batch_size: int) -> torch.Tensor:
    """Draw a batch of noise where the model is, and as it likes it."""
    sizes = (batch_size, *input_size)
    if len(sizes) != 4 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise RecipeError(
            f"batch_size={batch_size}, input_size={tuple(input_size)} is no batch of images; "
            "give whole numbers above 0, the input size as (channels, height, width)."
        )
    device, dtype = _place(model)
    return torch.rand(sizes, device=device, dtype=dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
