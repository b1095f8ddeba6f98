"""Methods that train, through the door: the cut they end in, and runs that are stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import timm_linop
from tests.slims import lively
from timm_linop.errors import CheckpointError, Interrupted, PruningError, RecipeError
from timm_linop.flags import write_yaml
from timm_linop.prune_run import prune as prune_run
from timm_linop.pruning import KeptScores, Training, check_penalty, pruned
from timm_linop.pruning.admm import ADMM
from timm_linop.pruning.tpp import TrainabilityPreserving
from timm_linop.recipe import (
    ADMMConfig,
    CheckpointConfig,
    DataConfig,
    DenseConfig,
    OptimConfig,
    PruneConfig,
    PruneRecipe,
    Recipe,
    RunConfig,
    ScheduleConfig,
)
from timm_linop.resume import Stop

METHODS = {"admm": ADMM, "tpp": TrainabilityPreserving}


def batches(shuffle: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = TensorDataset(torch.randn(16, 3, 32, 32, generator=generator), torch.arange(16) % 10)
    return DataLoader(images, 4, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def training(output: Path) -> Training:
    """Eight steps; a checkpoint after every second one."""
    recipe = Recipe(
        optim=OptimConfig(lr=0.01),
        schedule=ScheduleConfig(epochs=2, sched="constant", warmup_epochs=0),
        checkpoint=CheckpointConfig(checkpoint_every=2),
        run=RunConfig(str(output)),
    )
    output.mkdir(exist_ok=True)
    loading = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=True, dataloader_config=loading)
    return Training(batches(True), batches(False), recipe, accelerator, admm=ADMMConfig(rho=0.5))


def cut(method: str, how: Training) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = lively("test_resnet", num_classes=10)
    example = torch.randn(1, 3, 32, 32)
    return pruned(model, example, method=method, ratio=0.5, round_to=1, training=how)


@pytest.fixture(scope="module", params=METHODS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, nn.Module, Any]]:
    slim, report = cut(request.param, training(tmp_path_factory.mktemp("whole") / "run"))
    yield request.param, slim, report


def test_a_method_ends_in_the_widths_asked_for(whole: tuple[str, nn.Module, Any]) -> None:
    method, slim, report = whole
    assert report.config.method == method
    for group in report.groups.values():
        assert group.kept == group.units - len(group.removed) == group.units // 2
        assert not group.scores
    assert [row["step"] for row in report.history][-1] == 8
    assert slim.get_parameter("layer1.0.conv1.weight").shape == (16, 16, 3, 3)
    assert report.mask_error < 1e-12


def test_a_stopped_run_ends_where_it_would_have_ended(
    whole: tuple[str, nn.Module, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, slim, report = whole
    kind, how = METHODS[method], training(tmp_path / "run")
    after_step = kind.after_step

    def then_stop(self: Any, updates: int) -> None:
        after_step(self, updates)
        how.stop.asked = updates == 5

    with monkeypatch.context() as patch:
        patch.setattr(kind, "after_step", then_stop)
        with pytest.raises(Interrupted, match="stopped after 5 steps"):
            cut(method, how)
    again, resumed = cut(method, training(tmp_path / "run"))
    assert resumed.history == report.history
    assert {n: g.removed for n, g in resumed.groups.items()} == {
        n: g.removed for n, g in report.groups.items()
    }
    for name, tensor in slim.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_cut_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once filters, biases and norms are silent, trained and slim model say the same."""
    from timm_linop.pruning import door

    seen: dict[str, nn.Module] = {}
    train_towards = door.train_towards

    def noting(*args: Any) -> Any:
        found = train_towards(*args)
        seen["trained"] = found[0]
        return found

    monkeypatch.setattr(door, "train_towards", noting)
    slim, _ = cut("admm", training(tmp_path / "run"))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before, after = seen["trained"](x), slim(x)
    assert (before - after).norm() <= 1e-5 * before.norm()


def test_a_penalty_too_steep_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    steep, optim = ADMMConfig(rho=10.0), OptimConfig(lr=0.1)
    with pytest.raises(RecipeError, match="rho grows to 1000"):
        check_penalty(PruneConfig(method="admm"), optim, steep)
    check_penalty(PruneConfig(method="tpp"), optim, steep)  # which has no rho
    recipe = PruneRecipe(
        prune=PruneConfig(method="admm"), admm=steep, optim=optim, run=RunConfig(str(tmp_path))
    )
    with pytest.raises(RecipeError, match="rho grows to 1000"):
        prune_run(recipe)


def test_an_average_is_refused() -> None:
    with pytest.raises(RecipeError, match="--model-ema ships an average"):
        PruneRecipe(optim=replace(OptimConfig(), model_ema=True)).effective()


def test_kept_scores_are_taken_up_again(tmp_path: Path) -> None:
    path, accelerator, stop = tmp_path / "scores.json", Accelerator(cpu=True), Stop()
    kept = KeptScores(path, accelerator, stop)
    scores: dict[str, Tensor] = {"a": torch.rand(3).double(), "b": torch.rand(2).double() / 1e9}
    kept.add("a", scores["a"])
    stop.asked = True
    with pytest.raises(Interrupted, match=r"scores of 2 groups.*--resume"):
        kept.add("b", scores["b"])
    again = KeptScores(path, accelerator, Stop()).done
    assert all(torch.equal(again[name], own) for name, own in scores.items())  # to the last bit
    path.write_text(json.dumps(["a"]))
    with pytest.raises(CheckpointError, match="damaged"):
        KeptScores(path, accelerator, Stop())


@pytest.mark.parametrize("begun", [False, True])
def test_a_refused_run_leaves_no_folder_and_a_resumed_one_its_recipe(
    tmp_path: Path, begun: bool
) -> None:
    timm_linop.save(lively("test_resnet", in_chans=1, num_classes=10), tmp_path / "dense")
    recipe = PruneRecipe(
        model=DenseConfig(weights=str(tmp_path / "dense"), img_size=32),
        data=DataConfig(dataset="digits"),
        prune=PruneConfig(target_params=1e-9),
        run=RunConfig(str(tmp_path / "run")),
    )
    if begun:  # stopped before it had scores
        (tmp_path / "run").mkdir()
        write_yaml(recipe, tmp_path / "run" / "recipe.yaml")
        recipe = replace(recipe, checkpoint=CheckpointConfig(resume=str(tmp_path / "run")))
    with pytest.raises(PruningError, match="target_params"):
        prune_run(recipe)
    assert (tmp_path / "run" / "recipe.yaml").exists() == (tmp_path / "run").exists() == begun


def test_sharded_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_linop.fit.check_sharding", lambda *_: True)
    with pytest.raises(PruningError, match=r"compares whole filters; launch with multi_gpu\.yaml"):
        cut("admm", training(tmp_path / "run"))
