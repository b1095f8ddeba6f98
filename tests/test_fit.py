"""The loop's arithmetic: accumulation, precision, layouts, compilation, averages, divergence."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from accelerate.utils import DistributedType

import timm_linop
from tests.training import dense_and_slim, recipe_of, some_steps, trainer_of
from timm_linop.arrange import arranged, check_sharding
from timm_linop.errors import RecipeError, TrainingError
from timm_linop.expand import contracted_state
from timm_linop.expanded import factors_of
from timm_linop.recipe import (
    ComputeConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
)
from timm_linop.resume import Stop

Steps = tuple[torch.Tensor, dict[str, Any]]  # the losses of some, and the state after them


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return dense_and_slim(tmp_path_factory.mktemp("names"))


def linop(names: tuple[str, str], folder: Path) -> Recipe:
    """LinOP with both distillations."""
    teacher, pruned = names
    distill = DistillConfig(teacher, gamma=3000, kd_weight=0.5)
    return recipe_of(pruned, folder / "run", distill=distill, optim=OptimConfig(lr=0.005))


@pytest.fixture
def recipe(names: tuple[str, str], tmp_path: Path) -> Recipe:
    return linop(names, tmp_path)


def state_after(recipe: Recipe, steps: int, **options: Any) -> Steps:
    trainer = trainer_of(recipe, **options)
    losses = some_steps(trainer, steps)
    return losses, {name: t.clone() for name, t in trainer.model.state_dict().items()}


def assert_close(one: dict[str, Any], other: dict[str, Any], rtol: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        off = (tensor.double() - other[name].double()).norm()
        assert off <= rtol * tensor.double().norm() + 1e-9, (name, off)


@pytest.fixture(scope="module")
def exact(names: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Three steps of ``recipe`` as it is, which other ways of computing are held against."""
    return state_after(linop(names, tmp_path_factory.mktemp("exact")), 3)


def test_accumulated_batches_are_one_large_batch(recipe: Recipe) -> None:
    """No batch statistics, sub-batches of 25: four quarters of a batch are the whole batch."""
    distill = replace(recipe.distill, sub_batch=25)
    whole = replace(recipe, distill=distill)
    parts = replace(
        whole,
        data=replace(whole.data, batch_size=25),
        compute=ComputeConfig(grad_accum_steps=4),
    )
    losses, state = state_after(whole, 3)
    losses_of_parts, state_of_parts = state_after(parts, 3)
    assert torch.allclose(losses, losses_of_parts, rtol=1e-4)
    assert_close(state, state_of_parts, 1e-4)


def test_the_last_step_of_an_epoch_takes_what_is_left(recipe: Recipe) -> None:
    parts = replace(
        recipe, data=replace(recipe.data, batch_size=300), compute=ComputeConfig(grad_accum_steps=3)
    )
    trainer = trainer_of(parts)
    seen = [images for _, images in trainer.steps(trainer.batches)]
    assert seen == [900, 100]  # weighted by images, not by batches
    assert trainer.progress.updates == 2 and trainer.progress.batch == 4
    assert len(trainer.batches) == 4


def test_bfloat16_composes_and_compares_in_float32(recipe: Recipe, exact: Steps) -> None:
    trainer = trainer_of(recipe, mixed_precision="bf16")
    dtypes = set()
    layer = next(m for m in trainer.model.modules() if hasattr(m, "parametrizations"))
    layer.parametrizations.weight.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
    compare = trainer.objective.similarity.compare
    trainer.objective.similarity.compare = lambda s, t: (  # type: ignore[method-assign]
        dtypes.update(g.dtype for each in (*s.values(), *t.values()) for g in each),
        compare(s, t),
    )[1]
    losses = some_steps(trainer, 3)
    assert dtypes == {torch.float32}
    assert torch.allclose(losses[:, 1], exact[0][:, 1], rtol=0.02)  # task
    assert torch.allclose(losses[:, 2], exact[0][:, 2], rtol=0.2)  # SP, of bfloat16 activations
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_channels_last_changes_rounding_only(recipe: Recipe, exact: Steps) -> None:
    trainer = trainer_of(replace(recipe, compute=ComputeConfig(channels_last=True)))
    assert torch.allclose(exact[0], some_steps(trainer, 3), rtol=1e-4)
    assert_close(exact[1], trainer.model.state_dict(), 1e-4)
    images, _ = trainer._mixed(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_checkpointed_activations_change_rounding_only(recipe: Recipe, exact: Steps) -> None:
    losses, state = exact
    twice = replace(recipe, compute=ComputeConfig(grad_checkpointing=True))
    other, state_of_other = state_after(twice, 3)
    assert torch.allclose(losses, other, rtol=1e-5)
    assert_close(state, state_of_other, 1e-5)
    both = replace(twice, compute=ComputeConfig(grad_checkpointing=True, grad_accum_steps=2))
    assert some_steps(trainer_of(both), 2).isfinite().all()


@pytest.mark.slow
def test_compiled_training_is_the_same_training(recipe: Recipe, exact: Steps) -> None:
    losses, state = exact
    compiled = replace(recipe, compute=ComputeConfig(torchcompile="eager"))
    other, state_of_other = state_after(compiled, 3)
    assert torch.allclose(losses, other, rtol=1e-4)
    assert_close(state, state_of_other, 1e-4)


def test_sharded_weights_are_put_together_at_the_end(recipe: Recipe) -> None:
    """What FSDP and DeepSpeed need, with the one piece that there is on one process."""
    trainer = trainer_of(recipe)
    trainer.sharded, trainer.spare = True, copy.deepcopy(trainer.model)
    some_steps(trainer, 2)
    whole = trainer._whole()
    assert whole is not trainer.model
    assert_close(trainer.model.state_dict(), whole.state_dict(), 0)


def test_muon_is_refused_where_it_would_see_no_matrices() -> None:
    zero = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(RecipeError, match="--opt nmuon needs the matrices; use --opt sgd"):
        check_sharding(Recipe(optim=OptimConfig(opt="nmuon")), zero)  # type: ignore[arg-type]
    assert check_sharding(Recipe(optim=OptimConfig(opt="sgd")), zero)  # type: ignore[arg-type]
    fsdp = SimpleNamespace(distributed_type=DistributedType.FSDP)
    assert check_sharding(Recipe(optim=OptimConfig(opt="muon")), fsdp)  # type: ignore[arg-type]


def test_shared_statistics_leave_a_model_that_saves_and_reloads(tmp_path: Path) -> None:
    """SyncBatchNorm trains on GPUs only, but what it leaves is a plain model."""
    model = timm.create_model("test_efficientnet", num_classes=10)
    two = SimpleNamespace(num_processes=2)
    shared = arranged(model, ComputeConfig(sync_bn=True), two)  # type: ignore[arg-type]
    assert any("Sync" in type(module).__name__ for module in shared.modules())
    timm_linop.save(shared, tmp_path / "slim")
    again = timm.create_model(f"local-dir:{tmp_path}/slim", pretrained=True)
    assert_close(shared.state_dict(), again.state_dict(), 0)


def test_the_average_is_of_slim_weights(recipe: Recipe) -> None:
    kept = replace(recipe, optim=OptimConfig(lr=0.05, model_ema=True, model_ema_decay=0.5))
    trainer = trainer_of(kept)
    assert trainer.average is not None
    expected: dict[str, torch.Tensor] = {}
    for step, _ in zip(range(4), trainer.steps(trainer.batches), strict=False):
        for name, tensor in contracted_state(trainer.model).items():
            tensor = tensor.clone()
            expected[name] = tensor if step == 0 else (expected[name] + tensor) / 2
    average = trainer.average.module.state_dict()
    assert not any("parametrizations" in name for name in average)
    assert_close(expected, dict(average), 1e-6)


def test_mixup_takes_an_odd_last_batch(recipe: Recipe) -> None:
    odd = replace(recipe, data=DataConfig(batch_size=333, crop_pct=1.0))
    trainer = trainer_of(replace(odd, optim=OptimConfig(mixup=0.2)))
    seen = [images for _, images in trainer.steps(trainer.batches)]
    assert sum(seen) in (999, 1000)
    with pytest.raises(RecipeError, match="batch-size must be 2"):
        replace(odd, data=DataConfig(batch_size=1), optim=OptimConfig(cutmix=1.0)).effective()


def test_a_broken_factor_is_named_and_the_good_checkpoint_kept(recipe: Recipe) -> None:
    trainer = trainer_of(recipe)
    some_steps(trainer, 1)
    trainer._save()
    there = sorted(trainer.checkpoints.folder.iterdir())
    layer = next(m for m in trainer.model.modules() if hasattr(m, "parametrizations"))
    name = next(n for n, m in trainer.model.named_modules() if m is layer)
    with torch.no_grad():
        factors_of(layer)[1].view(-1)[0] = torch.nan
    with pytest.raises(TrainingError, match=rf"step 2, in epoch 1.*factor 1 of layer '{name}'"):
        some_steps(trainer, 1)
    trainer.progress.updates += 1
    with pytest.raises(TrainingError, match="last good one is kept"):
        trainer._save()
    assert sorted(trainer.checkpoints.folder.iterdir()) == there


def test_another_architecture_teaches_by_stages(names: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    timm_linop.save(other, tmp_path / "other")
    distill = DistillConfig(
        f"local-dir:{tmp_path}/other", gamma=1, pairs=("stages",), teacher_img_size=48
    )
    trainer = trainer_of(recipe_of(names[1], tmp_path / "run", distill=distill))
    assert trainer.objective.taps[1].names == {
        "stages.0": "layer1",
        "stages.1": "layer2",
        "stages.2": "layer3",
        "stages.3": "layer4",
    }
    sizes: list[Any] = []
    assert trainer.teacher is not None
    trainer.teacher.model.register_forward_pre_hook(lambda _, x: sizes.append(x[0].shape[2:]))
    losses = some_steps(trainer, 2)
    assert (losses[:, 2] > 0).all() and set(sizes) == {(48, 48)}


def test_other_classes_have_no_logits_to_follow(names: tuple[str, str], tmp_path: Path) -> None:
    timm_linop.save(timm.create_model("test_convnext", in_chans=1, num_classes=7), tmp_path / "t")
    distill = DistillConfig(f"local-dir:{tmp_path}/t", kd_weight=1.0)
    with pytest.raises(RecipeError, match="teacher has 7 classes and the student 10"):
        trainer_of(recipe_of(names[1], tmp_path / "run", distill=distill))


def test_a_whole_run_writes_rows_and_goes_on_where_it_was(recipe: Recipe) -> None:
    trainer = trainer_of(replace(recipe, compute=ComputeConfig(grad_accum_steps=3)))
    _, seconds = trainer.run(Stop())
    assert seconds > 0 and trainer.progress.updates == 4
    again = trainer_of(replace(recipe, compute=ComputeConfig(grad_accum_steps=3)))
    again.run(Stop())
    assert again.progress == trainer.progress
    assert_close(trainer.model.state_dict(), again.model.state_dict(), 0)
    assert isinstance(recipe.model, ModelConfig)
