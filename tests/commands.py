"""Commands in processes of their own, as users start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
_TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command in the project's folder, with what it prints in one stream."""
    told = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**told, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 400) -> tuple[int, str]:
    """Wait for the end of a process: its exit status, and what it printed."""
    try:
        printed = process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            kill(process)
    return process.returncode, printed


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 a process and all that it started; torchrun's are in sessions of their own."""
    ours = psutil.Process(process.pid)
    for each in (ours, *ours.children(recursive=True)):
        each.kill()


def start_script(argv: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """Start a script with its flags on the CPU, in one process or two."""
    prefix = [sys.executable, *(_TWO if processes == 2 else [])]
    return start([*prefix, *argv], ACCELERATE_USE_CPU="true")


def run_script(argv: list[str], processes: int = 1) -> str:
    """Run a script that is to succeed; give what it printed."""
    status, printed = finish(start_script(argv, processes))
    assert status == 0, printed
    return printed
