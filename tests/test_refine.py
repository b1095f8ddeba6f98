"""Label refinement: its loss, its step, its six versions of an image, and runs with both stages."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F

import timm_linop.run
from tests.training import dense_and_slim, recipe_of, trainer_of
from timm_linop import cli
from timm_linop.data import Augmentation, load_data, make_transforms
from timm_linop.data.expansion import VERSIONS, Expansion, cut_out, shuffled_blocks, turned
from timm_linop.data.stream import Stream
from timm_linop.distill import Teacher
from timm_linop.errors import DataError, RecipeError
from timm_linop.expand import contracted_state, is_expanded
from timm_linop.flags import parse
from timm_linop.optim import make_scheduler
from timm_linop.recipe import DataConfig, DistillConfig, OptimConfig, Recipe, RefineConfig
from timm_linop.refine import (
    Labels,
    Refinement,
    distance_to_labels,
    refined,
    refiner,
    second_stage,
)

ROOT = Path(__file__).parents[1]
_, EVALUATE = make_transforms({"input_size": (1, 32, 32)}, augment=Augmentation())
IMAGES = 20


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_step_by_hand() -> None:
    """A label of 1/4 and 3/4, a student who cannot tell, two images in the batch."""
    labels, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    moved = refined(labels, student, rate=0.7 / 2)
    wanted = [[0 + 0.35 * 0.25, math.log(3) - 0.35 * 0.25]]
    assert moved.tolist() == [pytest.approx(wanted[0], abs=1e-7)]


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from([0.3, 0.7, 1.0]))
def test_the_step_is_gradient_descent_at_rate_1(seed: int, batch: int, weight: float) -> None:
    labels, student = drawn(seed, batch, 4).requires_grad_(), drawn(seed + 1, batch, 4)
    loss = weight * kl_divergence(Categorical(logits=student), Categorical(logits=labels)).mean()
    (slope,) = torch.autograd.grad(loss, labels)
    got = refined(labels.detach(), student, weight / batch)
    assert torch.allclose(got, labels.detach() - slope, atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_the_distance_is_from_student_to_label(seed: int) -> None:
    student, labels = 3 * drawn(seed, 6, 5), 3 * drawn(seed + 1, 6, 5)
    one, other = Categorical(logits=student), Categorical(logits=labels)
    got = distance_to_labels(student, labels).item()
    assert got == pytest.approx(kl_divergence(one, other).mean().item(), rel=1e-5)
    assert got != pytest.approx(kl_divergence(other, one).mean().item(), rel=1e-3)


class Doubled(torch.nn.Module):
    """Three classes, of which an image holds half the logits; counts the images it is shown."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(len(images))
        return images.flatten(1) * 2


def test_the_loss_and_the_labels_of_a_step_of_two_batches() -> None:
    recipe = second_stage(Recipe(refine=RefineConfig(refine_epochs=1, refine_weight=0.7)))
    model, nothing = Doubled(), torch.autocast("cpu", enabled=False)
    teacher = Teacher(model, (0.0,), (1.0,), (0.0,), (1.0,))
    objective = Refinement(Doubled(), teacher, recipe, Labels(10, 3, torch.device("cpu")))
    images, places = drawn(0, 4, 1, 1, 3), torch.tensor([7, 2, 9, 0])
    classes, student = torch.tensor([0, 1, 2, 0]), drawn(1, 4, 3)
    for half in (slice(2), slice(2, 4)):
        targets = torch.stack([classes[half], places[half]], dim=1)
        losses = objective(lambda _, h=half: student[h], images[half], targets, nothing)
        first = Categorical(logits=images[half].flatten(1) * 2)
        kd = kl_divergence(Categorical(logits=student[half]), first).mean()
        task = F.cross_entropy(student[half], classes[half])
        expected = torch.stack([0.7 * kd + 0.3 * task, task, torch.zeros(()), kd])
        assert torch.allclose(losses.values().float(), expected, atol=1e-6)
        assert objective.labels.logits.isnan().all()  # none moves before the step
    objective.after_step(1)
    start = images.flatten(1) * 2
    moved = start - 0.7 / 4 * (start.softmax(1) - student.softmax(1))
    assert torch.allclose(objective.labels.logits[places], moved, atol=1e-6)
    assert objective.labels.logits.isnan().any(dim=1).sum() == 6
    targets = torch.tensor([[0, 7], [0, 5]])
    objective(lambda _: student[:2], images[:2], targets, nothing)
    assert model.shown == [2, 2, 1]  # an image that was met keeps its label
    assert torch.equal(objective.seen[0][1][0], objective.labels.logits[7])


def test_repeated_places_count_once_and_the_first_of_them() -> None:
    labels = Labels(4, 2, torch.device("cpu"))
    rows = torch.arange(10.0).view(5, 2)
    labels.put(torch.tensor([3, 1, 3, 1, 0]), rows)
    assert labels.logits[[3, 1, 0]].tolist() == rows[[0, 1, 4]].tolist()
    assert labels.logits[2].isnan().all()


def test_labels_are_plain_data_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    labels, again = (Labels(5, 3, torch.device("cpu")) for _ in range(2))
    labels.put(torch.tensor([1, 4]), drawn(0, 2, 3))
    torch.save(labels.state_dict(), tmp_path / "labels.pt")
    again.load_state_dict(torch.load(tmp_path / "labels.pt", weights_only=True))
    assert torch.equal(again.logits.nan_to_num(7), labels.logits.nan_to_num(7))


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("size", [(24, 36), (32, 32), (29, 31)])
def test_blocks_change_places_and_stay_whole(parts: int, size: tuple[int, int]) -> None:
    image = torch.arange(2.0 * size[0] * size[1]).view(2, *size)
    high, wide = size[0] // parts, size[1] // parts
    places = [(y * high, x * wide) for y in range(parts) for x in range(parts)]

    def blocks(of: torch.Tensor) -> list[Any]:
        return [of[:, y : y + high, x : x + wide].tolist() for y, x in places]

    moved = [shuffled_blocks(image, seeded(seed), parts) for seed in range(3)]
    for each in moved:
        assert sorted(blocks(each)) == blocks(image)
        for rest in (slice(parts * high, None), slice(0)):
            assert torch.equal(each[:, rest], image[:, rest])
        assert torch.equal(each[:, :, parts * wide :], image[:, :, parts * wide :])
    assert len({str(each.tolist()) for each in moved}) > 1


def test_what_is_cut_out_is_a_fifth_to_a_half_and_inside() -> None:
    sides = []
    for seed in range(300):
        holes = (cut_out(torch.ones(3, 100, 50), seeded(seed)) == 0).nonzero()
        (low, high), (left, right) = (holes[:, axis].aminmax() for axis in (1, 2))
        tall, wide = int(high - low) + 1, int(right - left) + 1
        assert len(holes) == 3 * tall * wide
        assert abs(tall / 100 - wide / 50) < 0.02
        sides.append(tall)
    assert 20 <= min(sides) < 23 and 47 < max(sides) <= 50
    assert sum(sides) / len(sides) == pytest.approx(35, abs=1.5)  # uniform in the side


def test_a_turn_keeps_the_middle_and_takes_any_angle() -> None:
    image = torch.zeros(1, 41, 41)
    image[0, 20, 20], image[0, 20, 36] = 5.0, 3.0  # the centre, and one point to its right
    quarters = set()
    for seed in range(40):
        moved = turned(image, seeded(seed))
        assert moved[0, 20, 20] == pytest.approx(5, abs=0.1)
        moved[0, 20, 20] = 0
        y, x = divmod(int(moved[0, :, :].argmax()), 41)
        assert math.hypot(y - 20, x - 20) == pytest.approx(16, abs=1.5)
        quarters.add((y > 20, x > 20))
    assert len(quarters) == 4


def test_each_place_is_one_image_for_ever() -> None:
    data = load_data("digits")
    whole = Expansion(data.train, EVALUATE, seed=3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    asked = [17, 4, 5, 12, 0]
    batch = whole.__getitems__(asked)
    whole.set_epoch(8)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws change
    torch.manual_seed(6)
    for place, (image, (label, told)) in zip(asked, batch, strict=True):
        again, _ = whole[place]
        assert torch.equal(again, image) and told == place
        assert label == data.train[place // 6]["label"]
    plain = EVALUATE(data.train[2]["image"])
    assert torch.equal(whole[12][0], plain)
    versions = [whole[12 + number][0] for number in range(len(VERSIONS))]
    assert len({str(each.tolist()) for each in versions}) == 6
    assert not torch.equal(Expansion(data.train, EVALUATE, seed=4)[16][0], versions[4])


def test_a_stream_has_no_places() -> None:
    split = load_data("digits").train
    stream = Stream(split.to_iterable_dataset(), len(split), "the train split of digits")
    with pytest.raises(DataError, match=r"train split of digits is a stream.*--streaming"):
        Expansion(stream, EVALUATE, seed=0)


TEACHER = DistillConfig("resnet18", gamma=0, kd_weight=0.7)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"distill": DistillConfig(gamma=0)}, "labels that a teacher gives"),
        ({"distill": DistillConfig("resnet18", gamma=0)}, "--kd-weight or --gamma"),
        ({"distill": TEACHER, "data": DataConfig(streaming=True)}, "do not go together"),
        ({"distill": replace(TEACHER, task_weight=-1.0)}, "task_weight=-1"),
    ],
)
def test_what_cannot_be_refined_is_refused(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of("runs/pruned", Path("runs/x"), refine=RefineConfig(refine_epochs=1), **groups)


@pytest.mark.parametrize("bad", [{"refine_lr": 0.0}, {"refine_weight": 1.1}, {"refine_epochs": -1}])
def test_bad_numbers_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="out of range"):
        RefineConfig(**bad)
    with pytest.raises(RecipeError, match="leaves nothing to learn"):
        recipe_of("p", Path("x"), distill=DistillConfig(gamma=0, task_weight=0.0))


def test_the_recipe_is_curls() -> None:
    flags = ["--recipe", "curl-limited", "--pruned", "p", "--teacher", "t"]
    recipe = parse(Recipe, flags, "train.py").effective()
    distill, optim, schedule = recipe.distill, recipe.optim, recipe.schedule
    assert (distill.task_weight, distill.kd_weight, distill.kd_temperature) == (0.3, 0.7, 2)
    assert (optim.lr, optim.weight_decay, optim.mixup, optim.cutmix) == (0.01, 4e-5, 1, 0)
    assert 150 <= schedule.epochs <= 200 and schedule.warmup_epochs == 5
    assert (recipe.expand.rate, distill.gamma, recipe.data.batch_size) == (0, 0, 32)
    assert recipe.refine == RefineConfig(16, 1e-4, 0.7)
    short = parse(Recipe, [*flags, "--epochs", "50", "--rate", "3"], "train.py")
    assert (short.refine.refine_epochs, short.schedule.warmup_epochs) == (4, 1)
    assert short.expand.rate == 3
    stage, weights = second_stage(recipe), torch.optim.SGD([torch.zeros(1)], lr=1.0)
    weights.param_groups[0]["lr"] = stage.optim.lr
    scheduler = make_scheduler(weights, stage.schedule, 10)
    for update, rate in ((0, 1e-4), (80, 5e-5), (159, 0)):
        scheduler.step_update(update)
        assert weights.param_groups[0]["lr"] == pytest.approx(rate, abs=2e-8)
    assert not stage.optim.mixes


def started(folder: Path, architecture: str) -> Path:
    """A teacher, its slim half, and few images."""
    data = load_data("digits")
    dense_and_slim(folder, architecture)
    (folder / "data").mkdir()
    for name, rows in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        rows.select(range(IMAGES)).to_parquet(folder / "data" / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(tmp_path_factory.mktemp("start"), "test_resnet")


def test_the_first_stage_mixes_for_both_and_weighs_the_task(start: Path, tmp_path: Path) -> None:
    distill = DistillConfig(
        f"local-dir:{start}/dense", gamma=0, task_weight=0.3, kd_weight=0.7, kd_temperature=2.0
    )
    optim = OptimConfig(mixup=1.0)
    trainer = trainer_of(
        recipe_of(f"{start}/pruned", tmp_path / "run", distill=distill, optim=optim)
    )
    seen: dict[str, torch.Tensor] = {}
    assert trainer.teacher is not None
    for name, model in (("student", trainer.model), ("teacher", trainer.teacher)):

        def note(_: Any, given: Any, logits: Any, name: str = name) -> None:
            seen[name], seen[f"{name}'s logits"] = given[0], logits.detach()

        model.register_forward_hook(note)
    images, labels = next(iter(trainer.batches))
    mixed, shares = trainer._mixed(images.clone(), labels)
    losses = trainer.objective(trainer.forward, mixed, shares, torch.autocast("cpu", enabled=False))
    assert torch.equal(seen["student"], seen["teacher"]) and not torch.equal(mixed, images)
    student, teacher = (seen[f"{who}'s logits"] for who in ("student", "teacher"))
    soft, own = (Categorical(logits=logits / 2) for logits in (teacher, student))
    task = -(shares * student.log_softmax(1)).sum(1).mean()
    expected = 0.7 * 4 * kl_divergence(soft, own).mean() + 0.3 * task
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_average_takes_the_weights_place_and_chains_stay(start: Path, tmp_path: Path) -> None:
    distill = DistillConfig(f"local-dir:{start}/dense", gamma=3000, kd_weight=0.7)
    optim = OptimConfig(model_ema=True, model_ema_decay=0.5)
    recipe = recipe_of(
        f"{start}/pruned",
        tmp_path / "run",
        distill=distill,
        optim=optim,
        refine=RefineConfig(refine_epochs=2),
    )
    trainer = trainer_of(recipe)
    assert trainer.average is not None
    for _ in zip(range(2), trainer.steps(trainer.batches), strict=False):
        pass
    wanted = {name: tensor.clone() for name, tensor in trainer.average.module.state_dict().items()}
    data = load_data("digits")
    config = {"input_size": (1, 32, 32)}
    second = refiner(trainer, data, config)
    assert second.model is trainer.model and is_expanded(second.model)
    for name, tensor in contracted_state(second.model).items():
        off = (tensor - wanted[name]).double().norm() / wanted[name].double().norm().clamp_min(1e-6)
        assert off < 1e-4, name
    assert second.epochs == trainer.progress.epoch + 2
    assert len(second.batches) == math.ceil(6 * len(data.train) / 100)


def flags_of(start: Path, *more: str) -> list[str]:
    flags = ["--recipe", "curl-limited", "--pruned", f"{start}/pruned"]
    flags += ["--teacher", f"local-dir:{start}/dense", "--dataset", f"parquet:{start}/data/*"]
    flags += ["--img-size", "32", "--crop-pct", "1.0", "--epochs", "2", "--refine-epochs", "2"]
    return [*flags, "--batch-size", "30", "--drop", "0.2", "--rate", "2", *more]


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def newest(run: Path) -> Path:
    return max((run / "refined").iterdir())


def labels_of(run: Path) -> torch.Tensor:
    state = torch.load(newest(run) / "custom_checkpoint_0.pkl", weights_only=True)
    assert list(state) == ["logits"]
    return state["logits"]


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the refinement die before a step of it is done."""
    whole, steps = Refinement.after_step, iter(range(1, step + 1))

    def dies(self: Refinement, updates: int) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt
        whole(self, updates)

    monkeypatch.setattr(Refinement, "after_step", dies)
    return lambda: monkeypatch.setattr(Refinement, "after_step", whole)


def test_both_stages_and_a_run_killed_in_the_second_ends_as_if_nothing_had_happened(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    cli.train([*flags_of(start), "--output", str(whole)])
    assert [row["epoch"] for row in rows_of(whole)] == list("1234")
    assert [float(row["lr"]) for row in rows_of(whole)[2:]] == [1e-4, pytest.approx(5e-5)]
    results = (whole / "results.json").read_text()
    assert '"vanilla, KD, mixup, refined"' not in results  # but expanded
    assert '"expanded, KD, mixup, refined"' in results
    told = (whole / "slim" / "README.md").read_text()
    assert "distilled logits, mixup and refined labels" in told and "luo2020curl" in told

    argv = [*flags_of(start, "--checkpoint-every", "3"), "--output", str(run)]
    monkeypatch.setattr(timm_linop.run, "_finish", lambda *_: None)
    for step in (1, 3):  # before its first checkpoint, and between two; an epoch has 4 steps
        alive = killed_at(step, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            cli.train(argv)
        alive()
        argv = ["--resume", str(run)]
    cli.train(argv)
    assert rows_of(run) == rows_of(whole)
    assert torch.equal(labels_of(run), labels_of(whole))
    one, other = (load_file(newest(each) / "model.safetensors") for each in (run, whole))
    assert newest(run).name == newest(whole).name == "00000010"  # 2 steps, then 2 x 4
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_dry_run_tries_both_stages(start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.train([*flags_of(start), "--dry-run"])
    told = capsys.readouterr().out
    first, second = told.split("label refinement after that:")
    assert "2 epochs of momentum at lr 0.01" in first and "step 1: 20 images" in first
    assert "2 epochs of momentum at lr 0.0001" in second and "step 3: 30 images" in second
    assert told.count("nothing was written") == 1


@pytest.mark.slow
def test_two_processes_refine_as_one_does(tmp_path: Path) -> None:
    """20 images, and six times as many, in batches of 10 or 2 x 5; then 2 x 7, some repeated.

    Without batch statistics, a stage of few steps differs by rounding only.
    """
    start = started(tmp_path / "start", "test_convnext")
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    plain = ["--drop", "0", "--mixup", "0", "--no-aug"]

    def trained(name: str, prefix: list[str], batch: int) -> Path:
        flags = [*flags_of(start, *plain), "--batch-size", str(batch)]
        done = subprocess.run(
            [*prefix, str(ROOT / "train.py"), *flags, "--output", str(tmp_path / name)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    alone, both = trained("one", [sys.executable], 10), trained("two", two, 5)
    assert (labels_of(both) - labels_of(alone)).abs().max() < 1e-4
    for expected, got in zip(rows_of(alone), rows_of(both), strict=True):
        for name in ("lr", "train_loss", "task_loss", "kd_loss", "validation_loss"):
            assert float(got[name]) == pytest.approx(float(expected[name]), rel=1e-3), name
    uneven = trained("uneven", two, 7)
    assert labels_of(uneven).isfinite().all()
