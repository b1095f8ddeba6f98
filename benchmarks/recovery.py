"""Does it recover accuracy? python -m benchmarks.recovery [--budget MINUTES] [--study main ...].

One row is a network, a share of weights removed, an arm, a length, a learning rate and a seed. A
run that is stopped goes on where it was; --summary prints the tables of docs/recovery.md and draws
its figures. The dense network of each seed is trained and pruned by ADMM first, under runs/recovery
of the folder it is started in. Each worker is a process of one thread; on GPUs use one a device.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import astuple, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import timm_linop
from benchmarks import fashion
from benchmarks.recovery_answers import answers, leads
from benchmarks.recovery_arms import ARMS
from benchmarks.recovery_chains import DECAY
from benchmarks.recovery_figures import draw
from benchmarks.recovery_plan import (
    DATA,
    GRIDS,
    Cell,
    Data,
    Grid,
    Row,
    Rows,
    by_cell,
    validation_of,
)
from benchmarks.recovery_summary import report, views
from benchmarks.recovery_trials import TRIALS
from benchmarks.rows import append, read_rows
from timm_linop.bench import count_macs, count_parameters
from timm_linop.errors import DataError, TrainingError
from timm_linop.flags import parse
from timm_linop.models import make_student
from timm_linop.pruning import Training
from timm_linop.recipe import Recipe, ScheduleConfig

RESULTS = Path(__file__).with_name("results") / "recovery.csv"
WORK = Path("runs") / "recovery"
ABOUT = "; ".join(
    (
        "python -m benchmarks.recovery",
        *(
            f"{name}: {each.train} training and {each.validation} validation images, dense "
            f"{each.dense_epochs} epochs, ADMM {each.pruning_epochs}, warm-up {each.warmup_epochs}"
            f"{', shifted and flipped' if each.varied else ''}"
            f"{f', dense on {each.dense_train} images' if each.dense_train else ''}"
            for name, each in DATA.items()
        ),
        f"batches of {fashion.BATCH}, AVX2 kernels",
    )
)
ACCURACY = "accuracy.json"
# CPUs with wider vectors would take other kernels, whose rounding ends in other networks; with
# these the rows repeat to the last digit.
KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
SEEN = 512  # training images that a trial takes statistics from


def splits(data: str, dense: bool = False) -> fashion.Splits:
    """The images of the dense network, or of what it becomes."""
    source = DATA[data]
    return _read(source, source.dense_train if dense and source.dense_train else source.train)


@cache
def _read(source: Data, train: int) -> fashion.Splits:
    """Read images once a process."""
    read = fashion.read(train, source.validation, name=source.name, seen=source.dense_train)
    return replace(read, train=fashion.Varied(read.train)) if source.varied else read


def dense_folder(cell: Cell) -> Path:
    """Where the dense network lies."""
    return WORK / cell.data / cell.model / f"dense-{cell.seed}"


def slim_folder(cell: Cell) -> Path:
    """Where the pruned network lies."""
    return WORK / cell.data / cell.model / f"removed-{cell.removed}-{cell.seed}"


def make_dense(data: str, model: str, seed: int, folder: Path) -> None:
    """Train a dense network."""
    torch.manual_seed(seed)
    drawn = timm.create_model(model, **fashion.ARGUMENTS)
    recipe = fashion.recipe_of(0.1, DATA[data].dense_epochs)
    trained, score = fashion.fit(drawn, splits(data, dense=True), recipe, seed)
    _keep(trained, folder, score.test)


def make_slim(data: str, dense: Path, removed: float, seed: int, folder: Path) -> None:
    """Prune it by ADMM."""
    epochs = DATA[data].pruning_epochs
    recipe = replace(
        fashion.recipe_of(0.01, epochs),
        schedule=ScheduleConfig(epochs=epochs, sched="constant", warmup_epochs=0),
    )
    images = splits(data)
    torch.manual_seed(seed)
    batches = fashion.loader(images.train, seed), fashion.loader(images.validation, batch=500)
    slim = timm_linop.prune(
        load(dense),
        torch.zeros(1, *fashion.SIZE),
        training=Training(*batches, recipe),
        method="admm",
        target_params=1 - removed,
        round_to=1,
        floor=0.05,
    )
    _keep(slim, folder, fashion.accuracy(slim, images.test))


def _keep(model: nn.Module, folder: Path, test: float) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as draft:
        made = Path(draft) / "made"
        timm_linop.save(model, made)
        (made / ACCURACY).write_text(json.dumps({"test": test}))
        if not folder.exists():  # another run may have been faster
            made.rename(folder)


def _accuracy(folder: Path) -> float:
    return float(json.loads((folder / ACCURACY).read_text())["test"])


def load(folder: Path) -> nn.Module:
    """Load a dense or pruned network by name."""
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def recipe_of(cell: Cell) -> Recipe:
    """The recipe of a cell: SGD with Nesterov's momentum and a cosine."""
    flags = (
        f"--pruned {slim_folder(cell)} --teacher local-dir:{dense_folder(cell)} "
        f"--lr {cell.lr} --weight-decay {DECAY} --batch-size {fashion.BATCH} --seed {cell.seed} "
        f"--epochs {cell.epochs} --warmup-epochs {DATA[cell.data].warmup_epochs} {ARMS[cell.arm]}"
    )
    return parse(Recipe, flags.split(), "train.py").effective()


def measure(cell: Cell) -> Row:
    """Run one cell; a training that diverged has accuracies of 0."""
    recipe = recipe_of(cell)
    paths = dense_folder(cell), slim_folder(cell)
    dense, pruned = map(_accuracy, paths)
    slim = load(paths[1])
    costs = count_parameters(slim), count_macs(slim, fashion.SIZE)
    torch.manual_seed(cell.seed)
    student, _ = make_student(recipe, fashion.images_of(DATA[cell.data].name))
    if cell.arm in TRIALS:
        images = splits(cell.data).train.tensors[0][:SEEN]
        TRIALS[cell.arm](student, cell.seed, images)
    teacher = load(paths[0]) if recipe.distill.asked else None
    try:
        _, score = fashion.fit(student, splits(cell.data), recipe, cell.seed, teacher)
    except TrainingError:
        score = fashion.Score(0.0, 0.0, 0.0, 0, 0.0, 0.0)
    values = (*astuple(cell), *costs, dense, pruned, *astuple(score))
    return Row(*values)


Task = tuple[Callable[..., Any], tuple[Any, ...]]


def ready(cell: Cell) -> Task:
    """Tell what is to be done next for a cell: its networks first."""
    dense, slim = dense_folder(cell), slim_folder(cell)
    if not dense.exists():
        return make_dense, (cell.data, cell.model, cell.seed, dense)
    if not slim.exists():
        return make_slim, (cell.data, dense, cell.removed, cell.seed, slim)
    return measure, (cell,)


def run(grids: Sequence[Grid], output: Path, minutes: float, workers: int) -> None:
    """Do what is not done yet, in several processes; rows are written as they come.

    Args:
        grids: What is to be done, the first one first.
        output: The CSV.
        minutes: Nothing is begun after so long.
        workers: Processes, of one thread each.

    Raises:
        DataError: If networks are not those of the rows; what was begun is ended first.
    """
    rows, deadline = by_cell(read_rows(output, Row)), time.monotonic() + 60 * minutes
    print(f"{len(rows)} rows are in {output}; {_left(grids, rows)}", flush=True)
    running: dict[Future[Any], Task] = {}
    strange = None
    with processes(workers) as pool:
        while True:
            strange = strange or _strange(grids, rows)
            if time.monotonic() < deadline and not strange:
                for task in islice(_waiting(grids, rows, running), workers - len(running)):
                    running[pool.submit(task[0], *task[1])] = task
                    if task[0] is not measure:
                        print(f"{task[0].__name__} {task[1][-1]}", flush=True)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                if isinstance(row := future.result(), Row):
                    rows[row.cell] = row
                    append(output, row, ABOUT)
    if strange:
        raise DataError(f"{strange} of {output}. To begin rows of your own, give --output.")
    print(_left(grids, rows))


def processes(workers: int) -> ProcessPoolExecutor:
    """Make processes of one thread each, which load torch anew, with `KERNELS`."""
    os.environ.update(KERNELS)
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=_quiet_worker)


def _waiting(
    grids: Sequence[Grid], rows: Rows, running: Mapping[Future[Any], Task]
) -> Iterator[Task]:
    tasks = (ready(cell) for cell in _missing(grids, rows))
    yield from (task for task in dict.fromkeys(tasks) if task not in running.values())


def _strange(grids: Sequence[Grid], rows: Rows) -> str | None:
    """Tell which network that is to be fine-tuned is not the one that the rows began with.

    Processors of another maker round otherwise, with the same kernels, too.
    """
    began = {dense_folder(row): row.dense for row in rows.values()}
    began |= {slim_folder(row): row.pruned for row in rows.values()}
    for cell in _missing(grids, rows):
        for folder in (dense_folder(cell), slim_folder(cell)):
            if folder in began and folder.exists() and (own := _accuracy(folder)) != began[folder]:
                return f"{folder} has {own} % on test images, but {began[folder]} % in the rows"
    return None


def _missing(grids: Sequence[Grid], rows: Rows) -> Iterator[Cell]:
    validation = validation_of(rows)
    return (cell for grid in grids for cell in grid.missing(validation))


def _left(grids: Sequence[Grid], rows: Rows) -> str:
    missing = set(_missing(grids, rows))
    return f"{len(missing)} are missing, and those that their sweeps will ask for"


def _quiet_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - to the end


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would go on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def tables(rows: Rows) -> str:
    """Lay out the tables of all grids that have a whole column, as docs/recovery.md ends.

    Args:
        rows: Those of the CSV.
    """
    return "\n\n".join(filter(None, (report(rows, *each) for each in GRIDS.items())))


def _summarise(output: Path) -> None:
    rows = by_cell(read_rows(output, Row))
    print(leads(rows), answers(rows), tables(rows), sep="\n\n")
    for name, grid in GRIDS.items():
        for title, columns in views(rows, grid).items():
            path = output.with_name(f"recovery_{name}_{title.split()[0]}.png")
            draw(rows, grid, columns, path)


def positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Give what reads a flag that is to be above 0.

    Args:
        kind: `int` or `float`.
    """

    def read(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = 0
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{text} is no {kind.__name__} above 0")
        return number

    return read


def main(arguments: list[str] | None = None) -> int:
    """Run what is not done yet, or tell what the rows say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--study", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--budget", type=positive(float), default=math.inf, help="minutes")
    parser.add_argument("--workers", type=positive(int), default=os.cpu_count(), help="processes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV (default: the study's)")
    parser.add_argument("--summary", action="store_true", help="print tables, draw figures")
    args = parser.parse_args(arguments)
    if args.output.is_dir() or (args.summary and not args.output.exists()):
        parser.error(f"--output {args.output} is no CSV with rows.")
    if args.summary:
        _summarise(args.output)
        return 0
    torch.set_num_threads(1)
    try:
        run([GRIDS[name] for name in args.study], args.output, args.budget, args.workers)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
