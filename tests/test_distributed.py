"""Several processes: the configurations start what they say, or refuse; they fail as one."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config import load_config_from_file
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import is_deepspeed_available
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tests.commands import ROOT, finish, start
from timm_linop import cli, processes
from timm_linop.errors import DataError, LaunchError, TrainingError
from timm_linop.processes import Launch, check_processes, launch_flags, read_launch
from timm_linop.resume import _whole, stop_signals

CONFIGS = ROOT / "accelerate_configs"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
QUICK = ["train.py", "--model", "test_resnet", "--img-size", "32", "--crop-pct", "1", "--no-aug"]
DIGITS = [*QUICK, "--in-chans", "1", "--dataset", "digits", "--epochs", "1", "--batch-size", "100"]

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def launched(config: Path | str, *command: str, **environment: str) -> tuple[int, str]:
    flags = ["--config_file", str(config)] if config else []
    return finish(start([*ACCELERATE, *flags, *command], **environment), seconds=180)


def sentences(printed: str, name: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(f"{name}: ")]


# File, processes on all machines, on the CPU, what needs GPUs.
ASKED = [
    ("cpu", 1, True, ""),
    ("gpu_bf16", 1, False, "gpu_ids: 0"),
    ("multi_cpu", 2, True, "distributed_type: MULTI_GPU"),
    ("multi_gpu", 2, False, "distributed_type: MULTI_GPU"),
    ("multi_node", 4, False, "distributed_type: MULTI_GPU"),
    ("fsdp2", 2, False, "distributed_type: FSDP"),
    ("deepspeed_zero2", 2, False, "distributed_type: DEEPSPEED"),
    ("deepspeed_zero3", 2, False, "distributed_type: DEEPSPEED"),
]


def test_every_configuration_is_in_the_table_and_says_what_it_is_for() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == {name for name, *_ in ASKED}
    readme = (ROOT / "README.md").read_text()
    for path in CONFIGS.iterdir():
        assert path.read_text().startswith("# ") and f"`{path.name}`" in readme


@pytest.mark.parametrize(("name", "number", "cpu", "gpus"), ASKED)
def test_accelerate_reads_each_as_it_is_meant(name: str, number: int, cpu: bool, gpus: str) -> None:
    path = str(CONFIGS / f"{name}.yaml")
    assert isinstance(load_config_from_file(path), ClusterConfig)
    assert read_launch(["--config_file", path, "train.py"]) == Launch(path, number, cpu, gpus)


@pytest.mark.slow
def test_multi_cpu_trains_in_two_processes(tmp_path: Path) -> None:
    code, printed = launched(CONFIGS / "multi_cpu.yaml", *DIGITS, "--output", f"{tmp_path}/run")
    assert code == 0, printed
    told = json.loads(next(tmp_path.glob("run/checkpoints/*/progress.json")).read_text())
    assert told["processes"] == 2 and told["progress"]["updates"] == 5  # 1,000 images, 2 x 100
    assert printed.count("epoch 1/1") == printed.count("is written") == 1


@pytest.mark.slow
@without_gpu
@pytest.mark.parametrize(("name", "number"), [("multi_gpu", "1"), ("fsdp2", "2")])
def test_what_needs_gpus_says_so_without_them(name: str, number: str, tmp_path: Path) -> None:
    command = ["--num_processes", number, *DIGITS, "--output", f"{tmp_path}/run"]
    code, printed = launched(CONFIGS / f"{name}.yaml", *command)
    (sentence,) = sentences(printed, "LaunchError")
    assert code and "asks for GPUs" in sentence and "accelerate_configs/cpu.yaml" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(is_deepspeed_available(), reason="deepspeed is there")
def test_without_deepspeed_accelerate_says_so_before_any_code_of_ours() -> None:
    code, printed = launched(CONFIGS / "deepspeed_zero2.yaml", *DIGITS)
    assert code and "ImportError: DeepSpeed is not installed" in printed


TRAP = {"distributed_type": "MULTI_CPU", "num_processes": 2, "num_machines": 1, "use_cpu": True}


@pytest.mark.slow
def test_one_process_instead_of_two_is_refused(tmp_path: Path) -> None:
    """Of a default configuration, which accelerate writes as JSON whatever the file's name."""
    default = tmp_path / "home" / "accelerate" / "default_config.yaml"
    default.parent.mkdir(parents=True)
    default.write_text(json.dumps({**TRAP, "mixed_precision": "no"}))
    output = ["--output", f"{tmp_path}/run"]
    code, printed = launched("", *DIGITS, *output, HF_HOME=f"{tmp_path}/home")
    (sentence,) = sentences(printed, "LaunchError")
    assert code and f"{default} asks for 2 processes, but started one" in sentence
    assert not (tmp_path / "run").exists()


def test_two_runs_side_by_side_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchrun starts them, where there is no GPU and nothing asks for the CPU."""
    Accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as left:
        cli.train([*DIGITS[1:], "--output", f"{tmp_path}/run"])
    (sentence,) = sentences(capsys.readouterr().err, "LaunchError")
    assert left.value.code == 2 and "WORLD_SIZE is 2" in sentence and "multi_cpu.yaml" in sentence
    assert not (tmp_path / "run").exists()


def test_flags_and_files_that_ask_for_several(tmp_path: Path) -> None:
    accelerator, trap = Accelerator(), tmp_path / "trap.yaml"
    trap.write_text(yaml.safe_dump(TRAP))
    cpu = str(CONFIGS / "cpu.yaml")
    for flags in (
        ["--config_file", str(trap)],
        ["--config_file", cpu, "--num_processes", "2"],
        ["--cpu", "--num-processes=2"],
    ):
        with pytest.raises(LaunchError, match="asks for 2 processes, but started one"):
            check_processes(accelerator, read_launch([*flags, "train.py", "--epochs", "3"]))
    for flags in (
        ["--config_file", cpu],
        ["--config_file", str(trap), "--num_processes", "1"],
        ["--num_processes", "1"],
        ["--cpu"],
        [],
        ["--no-such-flag", "2"],
        ["--config_file", "no/such.yaml"],
    ):
        check_processes(accelerator, read_launch([*flags, "train.py", "--num_processes", "2"]))


@without_gpu
@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_accelerate_left_out_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator()
    monkeypatch.setenv(variable, "true")
    with pytest.raises(LaunchError, match=f"{variable}=true"):
        check_processes(accelerator, Launch())
    gpu = read_launch(["--config_file", str(CONFIGS / "gpu_bf16.yaml"), "train.py"])
    monkeypatch.delenv(variable)
    with pytest.raises(LaunchError, match="gpu_ids: 0"):
        check_processes(accelerator, gpu)
    half = SimpleNamespace(device=torch.device("cpu"), mixed_precision="fp16")
    with pytest.raises(LaunchError, match="fp16 needs a GPU"):
        check_processes(half, Launch())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("python -u -m accelerate.commands.accelerate_cli launch a.py", ["a.py"]),
        ("python -m accelerate.commands.launch --cpu a.py", ["--cpu", "a.py"]),
        ("python /env/bin/accelerate-launch a.py", ["a.py"]),
        ("python /env/bin/accelerate config", None),
        ("python sweep.py accelerate launch a.py", None),
        ("python -m pytest", None),
        ("", None),
    ],
)
def test_only_accelerates_own_command_is_read(command: str, flags: list[str] | None) -> None:
    assert launch_flags(command.split()) == flags


EVALUATE = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
from timm_linop.evaluation import evaluate
from timm_linop.processes import start_accelerator
model, data = torch.load(sys.argv[1], weights_only=False)
accelerator = start_accelerator()
measured = evaluate(model, accelerator.prepare(DataLoader(TensorDataset(*data), 4)), accelerator)
print("MEASURED", accelerator.num_processes, measured.loss, measured.top1, measured.top5)
accelerator.wait_for_everyone()
accelerator.end_training()  # as train.py ends
"""


@pytest.mark.slow
def test_two_machines_measure_what_one_process_does(tmp_path: Path) -> None:
    """23 images in batches of 4 over two processes: the last ones are uneven, none counts twice."""
    images, labels = torch.randn(23, 5), torch.randint(3, (23,))
    model = nn.Linear(5, 3)
    torch.save((model, (images, labels)), tmp_path / "data.pt")
    (tmp_path / "script.py").write_text(EVALUATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = yaml.safe_load((CONFIGS / "multi_node.yaml").read_text())
    config |= {"main_process_ip": "127.0.0.1", "main_process_port": port}
    config |= {"use_cpu": True, "num_processes": 2, "mixed_precision": "no"}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config_file", f"{tmp_path}/two.yaml", "--machine_rank"]
    script = [f"{tmp_path}/script.py", f"{tmp_path}/data.pt"]
    machines = [start([*ACCELERATE, *flags, rank, *script]) for rank in "01"]
    right = int((model(images).argmax(1) == labels).sum())
    loss = F.cross_entropy(model(images), labels).item()
    # For as long as `finish` does unless told: torchrun's agents wait for each other for 300 s, and
    # with less patience what went wrong on the second machine would never be read.
    told = [finish(machine) for machine in machines]
    for code, printed in told:
        assert code == 0 and "MEASURED 2 " in printed, told
        measured = [float(each) for each in printed.split("MEASURED 2 ")[1].split()]
        assert measured == [pytest.approx(loss, rel=1e-6), 100 * right / 23, 100]


@pytest.mark.slow
def test_what_breaks_one_process_ends_all_and_is_told_once(tmp_path: Path) -> None:
    """One image is broken, so one process meets it, while the other waits for its gradients."""
    dice = np.random.default_rng(0)
    for split, number in (("train", 24), ("validation", 6), ("test", 6)):
        for place in range(2 * number):
            folder = tmp_path / "images" / split / "ab"[place % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = dice.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{place:02}.png")
    broken = tmp_path / "images" / "train" / "a" / "40.png"  # the second process's fifth batch
    broken.write_bytes(broken.read_bytes()[:1000])
    command = [*QUICK, "--dataset", f"imagefolder:{tmp_path}/images", "--batch-size", "4"]
    command += ["--checkpoint-every", "1", "--workers", "1", "--output", f"{tmp_path}/run"]
    code, printed = launched(CONFIGS / "multi_cpu.yaml", "--quiet", *command)
    assert code, printed
    (sentence,) = sentences(printed, "DataError")
    assert str(broken) in sentence and sentence.endswith("replace the image or remove it.")
    assert "failed (exitcode: 2) local_rank: 1" in printed  # the second, which must wait its turn
    assert printed.count("Traceback") == 1  # the launcher's own report
    assert printed.index(sentence) < printed.index("Traceback")
    left = list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert left and all(_whole(folder) for folder in left)


@pytest.mark.slow
def test_a_broken_run_dies_of_the_signal_it_had_noted() -> None:
    died: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: died.append(number))
    try:
        for error in (RuntimeError("connection closed"), TrainingError("diverged")):
            with pytest.raises(type(error)), stop_signals():
                signal.raise_signal(signal.SIGTERM)
                raise error
        assert died == [signal.SIGTERM]  # an error of ours is told instead
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("rank", "waits"), [("0", 0), ("1", 1)])
def test_the_first_process_speaks_at_once_the_others_wait(
    rank: str, waits: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def fail(argv: object) -> None:
        raise DataError("Caught DataError in ...\n  a.py\ntimm_linop.errors.DataError: broken.\n")

    with pytest.raises(SystemExit):
        cli._command(fail)([])
    assert len(slept) == waits and capsys.readouterr().err == "DataError: broken.\n"
