"""Time several pieces of work side by side in one process, so that only their ratios matter."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def medians(works: Mapping[str, Work], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Run each piece of work in turns, there and back, and take the median seconds of each.

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


def seconds_of(work: Work) -> float:
    """Time one run, waiting for an accelerator to have really done it."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
