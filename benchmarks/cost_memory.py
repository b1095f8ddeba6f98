"""Print the peak memory of two training steps, parameters included: bytes."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

from benchmarks import cost_works as works


def main(index: str, name: str) -> None:
    """Train one arm of a workload for two steps and print the peak."""
    workload = works.WORKLOADS[int(index)]
    model = works.arm(name, workload)
    images, _ = works.batch_of(workload)
    with torch.no_grad():
        model(images[:2])  # what libraries allocate once
    start = _reset()
    step = works.step_of(model, workload)
    step()
    step()
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    print(parameters + _peak() - start)


def _reset() -> int:
    if works.DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else training would first use up what building left free
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is now what is held
    return _kilobytes("VmRSS") * 1024


def _peak() -> int:
    if works.DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return _kilobytes("VmHWM") * 1024


def _kilobytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
