"""The processes of a run: as many as were asked for, where they were asked for, or none."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate import Accelerator
from accelerate.commands.config import default_config_file, load_config_from_file
from accelerate.utils import ComputeEnvironment, DistributedType

from .errors import LaunchError

# How long a launcher may take to end the others after one process failed: it looks every 0.1 s, but
# the one that failed must leave first.
_PATIENCE = 5.0

# Kinds of run that need no GPU.
_ANYWHERE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.XLA)
_SHARDED = {
    "ACCELERATE_USE_FSDP": DistributedType.FSDP,
    "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED,
    "ACCELERATE_USE_MEGATRON_LM": DistributedType.MEGATRON_LM,
}


@dataclass(frozen=True)
class Launch:
    """What ``accelerate launch`` was asked for; a run that it did not start asks for nothing.

    Attributes:
        source: Where that stands, for messages.
        processes: How many, on all machines together; None where nobody said.
        cpu: Whether they are to be on the CPU.
        gpus: The setting that needs GPUs, or nothing.
    """

    source: str = "accelerate launch"
    processes: int | None = None
    cpu: bool = False
    gpus: str = ""


def start_accelerator(**options: Any) -> Accelerator:
    """Make the Accelerator of a run that is launched as it was configured.

    Args:
        **options: Of ``Accelerator``.

    Returns:
        It, with as many processes as were asked for.

    Raises:
        LaunchError: If other processes run than were asked for, or on another device.

    Example:
        >>> start_accelerator().num_processes
        1
    """
    launch = asked_for()
    # Of use_cpu beside several processes, accelerate's launcher tells them nothing.
    accelerator = Accelerator(cpu=launch.cpu, **options)
    check_processes(accelerator, launch)
    return accelerator


def check_processes(accelerator: Accelerator, launch: Launch) -> None:
    """Refuse a run that accelerate made another one than was asked for, without a word.

    Args:
        accelerator: As it came out.
        launch: What was asked for.

    Raises:
        LaunchError: If FSDP, DeepSpeed, GPUs or fp16 were asked for and are not there, or if there
            are fewer processes than were asked for.

    Example:
        >>> check_processes(Accelerator(), Launch(processes=2))
        Traceback (most recent call last):
        timm_linop.errors.LaunchError: accelerate launch asks for 2 processes, but started one: ...
    """
    _check_device(accelerator, launch)
    if accelerator.distributed_type != DistributedType.XLA:  # a TPU's runtime counts its processes
        _check_number(accelerator.num_processes, launch)


def _check_device(accelerator: Accelerator, launch: Launch) -> None:
    on_cpu = accelerator.device.type == "cpu"
    for variable, kind in _SHARDED.items():
        asked = os.environ.get(variable, "").lower() == "true"
        if asked and accelerator.distributed_type != kind:
            raise LaunchError(_without_gpus(launch.source, launch.gpus or f"{variable}=true"))
    if launch.gpus and not launch.cpu and on_cpu:
        raise LaunchError(_without_gpus(launch.source, launch.gpus))
    if accelerator.mixed_precision == "fp16" and on_cpu:
        raise LaunchError(
            "mixed precision fp16 needs a GPU, and accelerate would quietly train in float32 "
            "without one; launch with --mixed_precision bf16, or no."
        )


def _check_number(there: int, launch: Launch) -> None:
    world = _number("WORLD_SIZE", 1)
    if world != there:
        raise LaunchError(
            f"WORLD_SIZE is {world}, but accelerate made this process a run of {there}: {world} "
            "runs would train side by side, as no GPU was found and nothing asked for the CPU. Set "
            "ACCELERATE_USE_CPU=true, or launch with accelerate_configs/multi_cpu.yaml."
        )
    if there == 1 and (launch.processes or 1) > 1:
        raise LaunchError(
            f"{launch.source} asks for {launch.processes} processes, but started one: accelerate "
            "starts several with MULTI_CPU only through mpirun, and with --num_processes only on "
            "GPUs. Launch with accelerate_configs/multi_cpu.yaml, or with --num_processes 1."
        )


def _without_gpus(source: str, gpus: str) -> str:
    return (
        f"{source} asks for GPUs ({gpus}), but accelerate would run this without any, as torch "
        "finds none that it may use. Launch with accelerate_configs/cpu.yaml, or with "
        "accelerate_configs/multi_cpu.yaml for two processes."
    )


def asked_for() -> Launch:
    """Read what this process's parent was asked for, where that is ``accelerate launch``.

    None of the variables that accelerate sets tells how many processes were asked for.

    Example:
        >>> asked_for()
        Launch(source='accelerate launch', processes=None, cpu=False, gpus='')
    """
    try:
        parent = psutil.Process().parent()
        flags = launch_flags(parent.cmdline()) if parent is not None else None
    except psutil.Error:  # gone, or another user's
        return Launch()
    return Launch() if flags is None else read_launch(flags)


def launch_flags(command: Sequence[str]) -> list[str] | None:
    """Cut the flags of ``accelerate launch`` out of a command line.

    Args:
        command: Interpreter, its options, script, flags.

    Returns:
        The flags; None for any other command.

    Example:
        >>> launch_flags(["python", "/bin/accelerate", "launch", "--cpu", "train.py"])
        ['--cpu', 'train.py']
        >>> launch_flags(["bash", "run.sh", "accelerate", "launch"]) is None
        True
    """
    for at, word in enumerate(command):
        rest = list(command[at + 1 :])
        name = Path(word).name.removesuffix(".exe")
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return rest
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and rest[:1] == ["launch"]:
            return rest[1:]
        if at and not word.startswith("-"):
            return None  # another script
    return None


def read_launch(flags: Sequence[str]) -> Launch:
    """Read the flags of ``accelerate launch`` and its config file as accelerate does.

    Args:
        flags: What stood behind ``accelerate launch``.

    Returns:
        What they ask for; nothing, if accelerate cannot read them.

    Example:
        >>> read_launch(["--cpu", "--num_processes", "2", "train.py"])
        Launch(source='accelerate launch', processes=2, cpu=True, gpus='')
    """
    handlers = list(logging.root.handlers)
    from accelerate.commands.launch import launch_command_parser

    logging.root.handlers[:] = handlers  # that import gives the log of all libraries another look
    try:
        given = launch_command_parser().parse_args(list(flags))
        if given.config_file or (Path(default_config_file).is_file() and not given.cpu):
            config = load_config_from_file(given.config_file)
            if config.compute_environment != ComputeEnvironment.LOCAL_MACHINE:
                return Launch()
            return _of_config(given, config)
    except (Exception, SystemExit):
        # Another accelerate launched this, or the file is gone; doubt is no reason to refuse.
        return Launch()
    return Launch(processes=given.num_processes, cpu=given.cpu, gpus=_gpus(given, None))


def _of_config(given: Any, config: Any) -> Launch:
    """What flags and config file ask for together; flags win."""
    source = given.config_file or default_config_file
    if given.num_processes is not None:
        return Launch(
            f"--num_processes {given.num_processes} beside {source}",
            given.num_processes,
            given.cpu or config.use_cpu,
            _gpus(given, config),
        )
    return Launch(source, config.num_processes, given.cpu or config.use_cpu, _gpus(given, config))


def _gpus(given: Any, config: Any) -> str:
    """The setting that needs GPUs; "all" of them may be none, and one process may be anywhere."""
    for flag in ("multi_gpu", "use_fsdp", "use_deepspeed", "use_megatron_lm"):
        if getattr(given, flag):
            return f"--{flag}"
    if given.gpu_ids not in (None, "all"):
        return f"--gpu_ids {given.gpu_ids}"
    if config is None:
        return ""
    if config.distributed_type not in _ANYWHERE:
        return f"distributed_type: {config.distributed_type.value}"
    return f"gpu_ids: {config.gpu_ids}" if config.gpu_ids not in (None, "all") else ""


def is_first() -> bool:
    """Tell whether this process is the one that speaks for all, also before they are connected.

    Example:
        >>> is_first()
        True
    """
    return _number("RANK", 0) == 0


def let_others_speak() -> None:
    """Wait a moment before telling a failure that may be another process's, or the same there.

    As soon as one process of several has left, its launcher ends the others: whichever met the
    failure first is then the only one that told it.

    Example:
        >>> let_others_speak()  # alone, there is nobody to wait for
    """
    if _number("WORLD_SIZE", 1) > 1:
        time.sleep(_PATIENCE)


def _number(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else default
