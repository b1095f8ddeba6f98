"""Streaming: the same images as in memory, each once, also when two processes share them."""

from __future__ import annotations

import ast
import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.commands import ROOT, run_script
from timm_linop import cli
from timm_linop.data import Augmentation, ImageData, load_data, make_loader, make_transforms
from timm_linop.data.stream import Stream
from timm_linop.errors import DataError
from timm_linop.evaluation import evaluate

SHARDS = {"train": (3, 90, 37, 70), "validation": (31, 6), "test": (45,)}  # 200, 37 and 45 images
INT = datasets.Value("int64")
CONFIG = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
CROPS, PLAIN = make_transforms(CONFIG, augment=Augmentation())
FLAGS = ["--model", "test_resnet", "--in-chans", "1", "--img-size", "32", "--crop-pct", "1.0"]
FLAGS += ["--mean", "0.5", "--std", "0.5", "--batch-size", "16", "--streaming", "--drop", "0.2"]


@pytest.fixture(autouse=True)
def _offline_and_no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    # `datasets` waits 5 s after shuffled parquet files, for the sake of older releases of pyarrow.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


def write(folder: Path, rows: datasets.Dataset, shards: dict[str, Sequence[int]] = SHARDS) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, sizes in shards.items():
        for number, size in enumerate(sizes):
            part = rows.select(range(start, start + size))
            part.to_parquet(folder / f"{split}-{number:05d}.parquet")
            start += size
    return f"parquet:{folder}/*.parquet"


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    data = load_data("digits")
    return datasets.concatenate_datasets([data.train, data.validation, data.test])


@pytest.fixture(scope="module")
def spec(rows: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("parquet"), rows)


@pytest.fixture
def streamed(spec: str) -> ImageData:
    return load_data(spec, streaming=True)


def batches(split: Any, transform: Any = PLAIN, epoch: int | None = None, **options: Any) -> list:
    loader = make_loader(split, transform, 16, **{"shuffle": False, **options})
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
        loader.dataset.set_epoch(epoch)
    found = list(loader)
    assert len(found) == len(loader)
    return found


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        torch.equal(images, others) and torch.equal(labels, theirs)
        for (images, labels), (others, theirs) in zip(one, other, strict=True)
    )


def test_a_stream_gives_what_memory_gives(spec: str, streamed: ImageData, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
        data = load_data(spec)
    assert (streamed.name, streamed.mode) == (data.name, "L")
    assert streamed.class_names == data.class_names
    for split in ("train", "validation", "test"):
        held, read = getattr(data, split), getattr(streamed, split)
        assert isinstance(read, Stream) and len(read) == len(held) == sum(SHARDS[split])
        for workers in (0, 2):
            assert same(batches(held, CROPS), batches(read, CROPS, workers=workers))
    again = make_loader(streamed.test, PLAIN, 16, shuffle=False)
    next(iter(again))  # a pass that is broken off
    assert same(list(again), batches(data.test))


def test_the_order_is_the_seeds_and_the_epochs(streamed: ImageData) -> None:
    def labels(found: list) -> list[int]:
        return torch.cat([labels for _, labels in found]).tolist()

    def shuffled(epoch: int, seed: int = 0, **options: Any) -> list:
        split = streamed.train
        return batches(split, CROPS, epoch, shuffle=True, seed=seed, **options)

    first, second = shuffled(0), shuffled(1)
    orders = [labels(found) for found in (batches(streamed.train), first, second, shuffled(0, 1))]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1
    assert same(first, shuffled(0)) and same(second, shuffled(1))
    assert same(second, shuffled(1, workers=2))


def test_images_come_as_they_are_stored(rows: datasets.Dataset, tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    PIL.Image.new("L", (9, 7), 100).save(jpeg, format="JPEG", quality=30)
    features = datasets.Features(pixels=datasets.Image(), kind=rows.features["label"], number=INT)
    stored = [{"pixels": {"bytes": jpeg.getvalue(), "path": "a.jpg"}, "kind": 3, "number": 1}] * 20
    content = datasets.Dataset.from_list(stored, features=features)
    data = load_data(write(tmp_path, content, {"train": (9,), "test": (11,)}), streaming=True)
    for stream in (data.train, data.train.shuffled(0), data.validation, data.test):
        assert list(stream) == [
            (place, {"bytes": jpeg.getvalue(), "path": "a.jpg"}, 3) for place in range(len(stream))
        ]


# --- two processes ----------------------------------------------------------------------------

SIZES = (37, 33, 32, 5, 1)
TOGETHER = """
import datasets, runpy, sys
from accelerate import Accelerator
from dataclasses import replace
from tests.test_stream import CROPS, PLAIN, SIZES
from timm_linop.data import load_data, make_loader
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
accelerator = Accelerator(cpu=True)
spec, train_py, *flags = sys.argv[1:]
data = load_data(spec, streaming=True)
told = []
for size in SIZES:
    split = replace(data.validation, rows=data.validation.rows.take(size), size=size)
    loader = accelerator.prepare(make_loader(split, PLAIN, 8, shuffle=False))
    for _ in range(2):
        sums = [accelerator.gather_for_metrics(x.sum((1, 2, 3))).tolist() for x, _ in loader]
    told.append([len(sums), len(loader), sorted(sum(sums, []))])
loader = accelerator.prepare(make_loader(data.train, CROPS, 16, shuffle=True))
for epoch in (0, 1):
    loader.set_epoch(epoch)
    loader.dataset.set_epoch(epoch)
    told.append([len(loader), [labels.tolist() for _, labels in loader]])
for process in range(2):
    accelerator.wait_for_everyone()
    if process == accelerator.process_index:
        print("told", repr(told), flush=True)
sys.argv[1:] = flags
runpy.run_path(train_py, run_name="__main__")
"""


@pytest.fixture(scope="module")
def together(spec: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    """Run a script and then train.py in two processes: what each told, and the run folder."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "script.py").write_text(TOGETHER)
    flags = [*FLAGS, "--dataset", spec, "--epochs", "2", "--output", str(folder / "run")]
    printed = run_script([f"{folder}/script.py", spec, str(ROOT / "train.py"), *flags], 2)
    lines = [line for line in printed.splitlines() if line.startswith("told")]
    return [ast.literal_eval(line.removeprefix("told ")) for line in lines], folder / "run"


@pytest.mark.slow
def test_two_processes_count_each_image_once(
    together: tuple[list, Path], streamed: ImageData
) -> None:
    told, _ = together
    sums = torch.cat([images for images, _ in batches(streamed.validation)]).sum((1, 2, 3))
    assert len(told) == 2
    for *evaluations, first, second in told:
        for size, (steps, length, found) in zip(SIZES, evaluations, strict=True):
            assert steps == length == -(-size // 16)
            assert np.allclose(found, sorted(sums[:size].tolist()), atol=1e-3)
        # 200 images are 12.5 batches of 16: six steps of two, and a seventh that is filled up.
        assert first[0] == second[0] == 7 and first[1] != second[1]
        assert [len(labels) for labels in first[1]] == [len(x) for x in second[1]] == [16] * 7
    for epoch in (-2, -1):
        alone = batches(streamed.train, PLAIN, epoch + 2, shuffle=True)
        dealt = [label for step in range(7) for rank in told for label in rank[epoch][1][step]]
        assert dealt[:200] == torch.cat([labels for _, labels in alone]).tolist()


@pytest.mark.slow
def test_two_processes_train_and_measure_as_one_would(
    together: tuple[list, Path], streamed: ImageData
) -> None:
    _, run = together
    model = timm.create_model(f"local-dir:{run}/slim", pretrained=True)
    accelerator = Accelerator(cpu=True)

    def alone(split: Stream) -> dict[str, float]:
        images, labels = (torch.cat(each) for each in zip(*batches(split), strict=True))
        return evaluate(model, [(images, labels)], accelerator).row()

    with (run / "metrics.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert last["epoch"] == "2"
    for name, value in alone(streamed.validation).items():
        assert float(last[name]) == pytest.approx(value, rel=1e-4), name
    results = json.loads((run / "results.json").read_text())
    measured = alone(streamed.test)["validation_accuracy"]
    assert results[-1]["accuracy"] == pytest.approx(measured)


@pytest.mark.slow
def test_a_resumed_stream_goes_on_where_it_was(spec: str, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = [*FLAGS, "--dataset", spec, "--epochs", "2"]
    flags += ["--checkpoint-every", "4", "--checkpoint-hist", "99"]
    cli.train([*flags, "--output", str(whole)])
    shutil.copytree(whole, run)
    shutil.rmtree(run / "slim")
    checkpoints = sorted((run / "checkpoints").iterdir())  # 13 steps an epoch
    assert [int(path.name) for path in checkpoints] == [4, 8, 12, 13, 16, 20, 24, 26]
    for path in checkpoints[5:]:  # as after a stop in the middle of the second epoch, at step 23
        shutil.rmtree(path)
    shutil.rmtree(checkpoints[4])
    shutil.copytree(whole / "checkpoints" / "00000016", run / "checkpoints" / "00000016")
    cli.train(["--resume", str(run)])
    one, other = (load_file(each / "slim" / "model.safetensors") for each in (run, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    with (run / "metrics.csv").open() as file, (whole / "metrics.csv").open() as theirs:
        for row, expected in zip(csv.DictReader(file), csv.DictReader(theirs), strict=True):
            assert {**row, "seconds": ""} == {**expected, "seconds": ""}


# --- splits -----------------------------------------------------------------------------------


def test_one_held_out_split_is_dealt(rows: datasets.Dataset, tmp_path: Path) -> None:
    data = load_data(write(tmp_path, rows, {"train": (40,), "test": (7, 4)}), streaming=True)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 6, 5)
    labels = rows["label"][40:51]
    assert torch.cat([each for _, each in batches(data.validation)]).tolist() == labels[::2]
    assert torch.cat([each for _, each in batches(data.test)]).tolist() == labels[1::2]
    assert [place for place, *_ in data.test] == list(range(5))
    with pytest.raises(ValueError, match="its order must stay"):
        data.test.shuffled(0)


def test_a_test_split_without_labels_is_left_out(
    rows: datasets.Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = write(tmp_path, rows, {"train": (40,), "validation": (10,)})
    hidden = rows.select(range(5)).map(lambda _: {"label": -1})
    hidden.to_parquet(tmp_path / "test.parquet")
    data = load_data(spec, streaming=True)
    assert (len(data.validation), len(data.test)) == (5, 5)
    assert "the test split has no labels and is left out" in caplog.text


CARD = """---
dataset_info:
  features:
  - {{name: image, dtype: image}}
  - {{name: label, dtype: {{class_label: {{names: {{'0': a, '1': b}}}}}}}}
  splits:
{splits}
---
"""


def test_the_hubs_card_tells_how_many_images(
    rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where `datasets` takes owner/name for a folder in Hub layout
    shards = {"train": (30, 20), "validation": (7,), "test": (9,)}
    two = rows.filter(lambda row: row["label"] < 2).cast_column(
        "label", datasets.ClassLabel(names=["a", "b"])
    )
    write(tmp_path / "owner" / "name" / "data", two, shards)
    with pytest.raises(DataError, match="does not tell how many images it has"):
        load_data("owner/name:default", streaming=True)
    sizes = [f"  - {{name: {split}, num_examples: {sum(n)}}}" for split, n in shards.items()]
    card = tmp_path / "owner" / "name" / "README.md"
    card.write_text(CARD.format(splits="\n".join(sizes)))
    data = load_data("owner/name:default", streaming=True)
    assert (data.name, data.class_names) == ("owner/name", ("a", "b"))
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 7, 9)
    assert sum(len(labels) for _, labels in batches(data.train)) == 50


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["digits", "imagefolder:images", "idx:mnist"])
def test_local_kinds_are_not_streamed(spec: str) -> None:
    with pytest.raises(DataError, match=f"{spec} is read from this machine, .* leave --streaming"):
        load_data(spec, streaming=True)


def test_train_py_refuses_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.train([*FLAGS, "--dataset", "digits"])
    assert left.value.code == 2 and "nothing to stream" in capsys.readouterr().err


def test_data_that_cannot_be_streamed(rows: datasets.Dataset, tmp_path: Path) -> None:
    numbers = rows.cast_column("label", datasets.Value("int64"))
    one = rows.filter(lambda row: row["label"] == 0)
    one = one.cast_column("label", datasets.ClassLabel(names=["0"]))
    hidden = rows.select(range(60)).map(lambda _: {"label": -1})
    held_out = {"train": (40,), "test": (9,)}
    for name, content, shards, sentence in (
        ("numbers", numbers, held_out, "names no classes, .* a ClassLabel column"),
        ("one", one, held_out, "has one class only"),
        ("hidden", hidden, held_out, "the first training image has no label"),
        ("alone", rows, {"train": (40,)}, "has no labelled images beside train"),
        ("single", rows, {"train": (40,), "test": (1,)}, "no labelled images beside train"),
        ("empty", rows, {"train": (40,), "test": (0,)}, "the test split is empty"),
        ("no_train", rows, {"test": (40,)}, "has no train split"),
    ):
        spec = write(tmp_path / name, content, shards)
        with pytest.raises(DataError, match=sentence):
            load_data(spec, streaming=True)


def test_what_comes_to_light_while_reading(rows: datasets.Dataset, tmp_path: Path) -> None:
    broken = rows.cast_column("image", datasets.Image(decode=False)).to_list()[:60]
    broken[21]["image"]["bytes"] = b"no image"
    broken[45]["label"] = None
    content = datasets.Dataset.from_list(broken, features=rows.features)
    spec = write(tmp_path, content, {"train": (20, 11), "validation": (9, 10), "test": (10,)})
    data = load_data(spec, streaming=True)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"image 21 of 31 cannot be read: .*replace the image"):
            batches(data.train, workers=workers)
    with pytest.raises(DataError, match=r"validation split of .*: image 14 of 19 has label None"):
        batches(data.validation)
    with pytest.raises(DataError, match=r"ended after 10 images, but its metadata tell of 12"):
        batches(replace(data.test, size=12))
    file = tmp_path / "test-00000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(DataError, match=r"test split of .* cannot be read beyond image 0 of 10"):
        batches(data.test)
