"""Settings: what is refused, which layer wins, named recipes and how they are stretched."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from timm_linop.data import Augmentation, make_transforms
from timm_linop.errors import RecipeError
from timm_linop.flags import _ELSEWHERE, continued, flat, parse, to_yaml, write_yaml
from timm_linop.models import arm_of
from timm_linop.optim import make_scheduler
from timm_linop.recipe import (
    DistillConfig,
    ModelConfig,
    OptimConfig,
    PruneRecipe,
    Recipe,
    RefineConfig,
    ScheduleConfig,
)
from timm_linop.recipe.named import NamedConfig, read_recipe, recipe_names
from timm_linop.recipe.schedule import scaled, stretched

STEPS = 7  # an epoch


def parsed(*flags: str) -> Recipe:
    return parse(Recipe, flags, "train.py")


def rates(recipe: Recipe) -> list[float]:
    """The learning rate at each step of a run."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.optim.lr)
    scheduler = make_scheduler(optimizer, recipe.schedule, STEPS)
    found = []
    for update in range(recipe.schedule.epochs * STEPS):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def by_epoch(steps: list[float]) -> list[float]:
    """The rate of each epoch, which is one for all its steps."""
    epochs = [steps[i : i + STEPS] for i in range(0, len(steps), STEPS)]
    assert all(len(set(epoch)) == 1 for epoch in epochs)
    return [epoch[0] for epoch in epochs]


PAPER = {
    # Qian et al. 2022: epochs at each learning rate.
    "paper-finetune": [(60, 1e-2), (40, 1e-3), (20, 1e-4), (30, 1e-5)],
    "paper-scratch": [(100, 1e-1), (60, 1e-2), (50, 1e-3), (40, 1e-4), (30, 1e-5)],
}
SHORT = {
    "paper-finetune": [(6, 1e-2), (4, 1e-3), (2, 1e-4), (3, 1e-5)],
    # 5.36, 8.57, 11.25 and 13.39 of 15
    "paper-scratch": [(5, 1e-1), (4, 1e-2), (2, 1e-3), (2, 1e-4), (2, 1e-5)],
}


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize(("flags", "expected"), [([], PAPER), (["--epochs", "15"], SHORT)])
def test_the_papers_learning_rates(name: str, flags: list[str], expected: Any) -> None:
    wanted = [rate for epochs, rate in expected[name] for _ in range(epochs)]
    got = by_epoch(rates(parsed("--recipe", name, *flags)))
    print(name, *flags, *(f"{epoch}: {rate:g}" for epoch, rate in enumerate(got, 1)))
    assert got == pytest.approx(wanted, rel=1e-12)


def test_every_recipe_is_in_the_package_and_says_what_it_is_for() -> None:
    folder = resources.files("timm_linop") / "recipes"
    files = [file for file in folder.iterdir() if file.is_file()]
    assert sorted(file.name for file in files) == [f"{name}.yaml" for name in recipe_names()]
    assert "paper-finetune" in recipe_names()
    documented = " ".join((NamedConfig.__doc__ or "").split())
    for file in files:
        name, text = file.name.removesuffix(".yaml"), file.read_text("utf-8")
        first = text.split("\n\n")[0]
        assert all(line.startswith("#") for line in first.splitlines())
        assert "Source:" in first and f"--recipe {name}" in first
        assert name in documented
        assert read_recipe(name)["epochs"] >= 1


def test_hatch_takes_the_recipes_along() -> None:
    """The wheel is the package's folder; nothing of it is ignored."""
    root = Path(__file__).parents[1]
    assert 'packages = ["timm_linop"]' in (root / "pyproject.toml").read_text()
    assert not any("yaml" in line for line in (root / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_sets_what_it_says(name: str) -> None:
    flat = yaml.safe_load(to_yaml(parsed("--recipe", name)))
    assert flat["recipe"] == name
    assert {key: flat[key] for key in read_recipe(name)} == read_recipe(name)


def test_the_papers_arms() -> None:
    model = ["--pruned", "somewhere"]
    tuned = parsed("--recipe", "paper-finetune", *model, "--teacher", "resnet18").effective()
    assert arm_of(tuned) == "linop"
    assert (tuned.expand.rate, tuned.expand.init) == (3, "normal")
    distill = tuned.distill
    assert (distill.gamma, distill.pairs, distill.reduction) == (3000, ("all",), "sum")
    assert arm_of(parsed("--recipe", "paper-scratch", *model).effective()) == "scratch"
    nets = parsed("--recipe", "paper-scratch", *model, "--rate", "3").effective()
    assert arm_of(nets) == "expandnets"
    few = parsed("--recipe", "curl-limited", *model, "--teacher", "resnet18")
    assert arm_of(few.effective()) == "vanilla, KD, mixup, refined"


def test_an_arm_is_named_by_all_that_it_adds() -> None:
    """So that the runs of docs/recovery.md can stand beside each other on a card."""
    start, taught = ["--pruned", "slim", "--rate", "0"], ["--teacher", "resnet18"]
    alone = [*start, "--kd-weight", "0"]
    named = {
        "vanilla": alone,
        "vanilla, mixup": [*alone, "--mixup", "0.2"],
        "vanilla, adamw, cutmix": [*alone, "--cutmix", "1.0", "--opt", "adamw"],
        "vanilla, KD": [*start, *taught, "--opt", "momentum"],
        "vanilla, KD, muon, mixup": ["--pruned", "slim", *taught, "--recipe", "default"],
        "dense": ["--model", "resnet18", "--opt", "adamw", "--mixup", "0.2"],
    }
    assert {arm: arm_of(parsed(*flags).effective()) for arm, flags in named.items()} == {
        arm: arm for arm in named
    }
    assert arm_of(parsed(*alone, "--opt", "Nesterov").effective()) == "vanilla"


def test_flags_win_over_a_file_over_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.5\nmomentum: 0.8\n")
    for order in (["--lr", "0.7", "--config", str(file)], [f"--config={file}", "--lr", "0.7"]):
        recipe = parsed("--recipe", "paper-finetune", *order)
        assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.opt) == (0.7, 0.8, "momentum")
    assert parsed("--lr", "0.7", "--recipe", "paper-finetune").optim.lr == 0.7


def test_a_file_may_name_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: paper-finetune\nepochs: 30\n")
    assert parsed("--config", str(file)).schedule.decay_milestones == (12, 20, 24)
    assert parsed("--config", str(file), "--epochs", "15").schedule.decay_milestones == (6, 10, 12)
    other = parsed("--config", str(file), "--recipe", "paper-scratch")
    assert other.schedule.decay_milestones == (11, 17, 23, 27)
    given = parsed("--config", str(file), "--decay-milestones", "3")
    assert given.schedule.decay_milestones == (3,)


def test_a_run_goes_on_with_the_recipe_it_began_with(tmp_path: Path) -> None:
    flags = ["--recipe", "paper-finetune", "--epochs", "15", "--model", "resnet18"]
    begun = parsed(*flags, "--gamma", "0").effective()
    write_yaml(begun, tmp_path / "recipe.yaml")
    assert parsed("--config", str(tmp_path / "recipe.yaml")) == begun
    resumed = continued(parsed("--resume", str(tmp_path)), "train.py")
    assert resumed.schedule == begun.schedule and resumed.named == begun.named
    with pytest.raises(RecipeError, match="leave the other flags out"):
        continued(parsed("--resume", str(tmp_path), "--recipe", "quick"), "train.py")


def test_pruning_goes_on_with_the_recipe_it_began_with(tmp_path: Path) -> None:
    flags = ["--method", "tpp", "--target-params", "0.3", "--ratio", "null", "--epochs", "3"]
    begun = parse(PruneRecipe, [*flags, "--keep", "stem"], "prune.py").effective()
    assert begun.prune.keep == ("stem",) and begun.schedule.sched == "constant"
    write_yaml(begun, tmp_path / "recipe.yaml")
    asked = parse(PruneRecipe, ["--resume", str(tmp_path)], "prune.py")
    resumed = continued(asked, "prune.py")
    assert (resumed.prune, resumed.schedule) == (begun.prune, begun.schedule)
    assert resumed.run.output == resumed.checkpoint.resume == str(tmp_path)
    with pytest.raises(RecipeError, match=r"prune\.py wrote it; go on with prune\.py --resume"):
        continued(parsed("--resume", str(tmp_path)), "train.py")


def test_the_ratio_of_pruning_is_not_that_of_crops() -> None:
    recipe = parse(PruneRecipe, ["--ratio", "0.7"], "prune.py")
    assert recipe.prune.ratio == 0.7 and recipe.augment == Augmentation()
    assert parsed("--ratio", "0.5", "2").augment.ratio == (0.5, 2)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"paper-finetune, paper-scratch, quick.*'quick'"):
        parsed("--recipe", "quik")


def test_stretched_milestones_are_distinct_and_inside() -> None:
    for milestones, of in (((60, 100, 120), 150), ((100, 160, 210, 250), 280), ((1, 2), 3)):
        assert stretched(milestones, of, of) == milestones
        for epochs in range(1, 2 * of):
            moved = stretched(milestones, of, epochs)
            assert list(moved) == sorted(set(moved))
            assert all(1 <= m < epochs for m in moved)
            assert len(moved) == min(len(milestones), epochs - 1)
            if epochs >= of:
                off = [m - old * epochs / of for m, old in zip(moved, milestones, strict=True)]
                assert all(abs(d) <= 0.5 for d in off)
    assert stretched((5,), 10, 5) == (3,)  # 2.5: halves up


def test_all_that_counts_epochs_is_scaled() -> None:
    settings = {"epochs": 100, "warmup_epochs": 10, "cooldown_epochs": 5, "decay_epochs": 30}
    settings |= {"mixup_off_epoch": 80, "refine_epochs": 16, "lr": 3}
    half = {"epochs": 50, "warmup_epochs": 5, "cooldown_epochs": 3, "decay_epochs": 15}
    assert scaled(settings, 50) == {**half, "mixup_off_epoch": 40, "refine_epochs": 8, "lr": 3}
    one = {"epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 1, "decay_epochs": 1}
    assert scaled(settings, 1) == {**one, "mixup_off_epoch": 1, "refine_epochs": 1, "lr": 3}
    zeros = {"epochs": 100, "warmup_epochs": 0, "decay_epochs": 0.2, "mixup_off_epoch": 0}
    assert scaled(zeros, 10) == {**zeros, "epochs": 10}
    assert scaled(settings, 100) == settings


def test_multistep_alone_falls_in_short_runs_too() -> None:
    def falls(epochs: int) -> Any:
        recipe = parsed("--model", "resnet18", "--sched", "multistep", "--epochs", str(epochs))
        return recipe.effective().schedule.decay_milestones

    assert [falls(150), falls(15), falls(2), falls(1)] == [(60, 100, 120), (6, 10, 12), (1,), ()]
    assert parsed("--model", "resnet18").effective().schedule.decay_milestones is None
    with pytest.raises(RecipeError, match="reach beyond epochs=15"):
        parsed("--sched", "multistep", "--epochs", "15", "--decay-milestones", "6", "20")


BAD_OPTIM: list[tuple[dict[str, Any], str]] = [
    ({"opt": "sdg"}, "Close names: .*'sgd'"),
    ({"clip_mode": "norms", "clip_grad": 1.0}, "norm, value or agc. Close names: 'norm'"),
    ({"clip_mode": "agc"}, "--clip-grad"),
    ({"clip_grad": 0.0}, "clip_grad=0.0 is out of range"),
    ({"chain_decay": "product"}, "factors or none"),
    ({"mixup_mode": "pairs"}, "batch, pair or elem"),
    ({"mixup": -0.1}, "mixup=-0.1"),
    ({"cutmix_minmax": (0.5, 0.2)}, "smallest < largest"),
    ({"mixup_prob": 1.5}, "mixup_prob=1.5"),
    ({"mixup_switch_prob": math.nan}, "mixup_switch_prob=nan"),
    ({"mixup_off_epoch": -1}, "mixup_off_epoch=-1"),
    ({"smoothing": 1.0}, "smoothing=1.0"),
    ({"bce_target_thresh": 0.2}, "--bce-loss"),
    ({"bce_target_thresh": 1.0, "bce_loss": True}, "bce_target_thresh=1.0"),
    ({"layer_decay": 0.0}, "layer_decay=0.0"),
    ({"opt_eps": 0.0}, "opt_eps=0.0"),
    ({"opt_betas": (0.9, 1.0)}, "opt_betas="),
    ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ({"model_ema_decay": 1.1}, "model_ema_decay=1.1"),
]
BAD_SCHEDULE: list[tuple[dict[str, Any], str]] = [
    ({"sched": "cosin"}, "Close names: 'cosine'"),
    ({"epochs": 0}, "epochs=0"),
    ({"epochs": 5, "warmup_epochs": 5}, "--warmup-prefix"),
    ({"warmup_epochs": -1}, "warmup_epochs=-1"),
    ({"cooldown_epochs": -1}, "cooldown_epochs=-1"),
    ({"decay_epochs": 0.0}, "decay_epochs=0.0"),
    ({"decay_rate": 0.0}, "decay_rate=0.0"),
    ({"min_lr": -0.1}, "min_lr=-0.1"),
    ({"sched": "multistep", "decay_milestones": (20, 10)}, "each later"),
    ({"sched": "multistep", "decay_milestones": (0, 10)}, "from 1 on"),
]
BAD_AUGMENT: list[tuple[dict[str, Any], str]] = [
    ({"ratio": (2.0, 1.0)}, "ratio="),
    ({"color_jitter_prob": 2.0}, "color_jitter_prob=2.0"),
    ({"grayscale_prob": -0.1}, "grayscale_prob=-0.1"),
    ({"gaussian_blur_prob": math.nan}, "gaussian_blur_prob=nan"),
    ({"remode": "noise"}, "pixel, rand or const"),
    ({"recount": 0}, "recount=0"),
    ({"train_interpolation": "cubic"}, "bicubic"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [(OptimConfig, *case) for case in BAD_OPTIM]
    + [(ScheduleConfig, *case) for case in BAD_SCHEDULE]
    + [(Augmentation, *case) for case in BAD_AUGMENT],
)
def test_bad_values_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--learning-rate", "Here it is --lr."),
        ("--per_device_train_batch_size", "Here it is --batch-size."),
        ("--kd-weigth", "Close names: '--kd-weight'"),
        ("--output-dir", "Close names: '--output'."),
    ],
)
def test_an_unknown_flag_is_told_as_it_is_typed_here(flag: str, told: str) -> None:
    with pytest.raises(RecipeError) as e:
        parsed(flag, "1")
    assert told in str(e.value)


def test_an_unknown_key_of_a_file_is_told_as_a_key(tmp_path: Path) -> None:
    for key, told in {"learning_rate": "Here it is lr.", "kd_weigth": "'kd_weight'"}.items():
        file = tmp_path / f"{key}.yaml"
        file.write_text(f"{key}: 1")
        with pytest.raises(RecipeError) as e:
            parsed("--config", str(file))
        assert told in str(e.value)


def test_prune_has_no_tracker_to_name() -> None:
    with pytest.raises(RecipeError) as e:
        parse(PruneRecipe, ["--report-to", "trackio"], "prune.py")
    assert "Here it is" not in str(e.value)


def test_every_foreign_name_stands_for_a_flag_and_is_none() -> None:
    own = flat(Recipe())
    assert set(_ELSEWHERE.values()) <= set(own) and not set(_ELSEWHERE) & set(own)


def test_every_flag_is_explained_and_typed_as_timms() -> None:
    flags = "--opt adamw --opt-eps 1e-6 --opt-betas 0.9 0.95 --opt-kwargs amsgrad=true "
    flags += "--layer-decay 0.75 --sched step --warmup-epochs 2 --warmup-prefix --cooldown-epochs 3"
    flags += " --decay-epochs 2.5 --decay-rate 0.5 --min-lr 1e-6 --ratio 0.5 2 --grayscale-prob 0.1"
    flags += " --color-jitter-prob 0.8 --gaussian-blur-prob 0.2 --reprob 0.3 --remode rand"
    flags += " --recount 2 --train-interpolation random --mixup 0.8 --cutmix 1 --mixup-prob 0.9"
    flags += " --cutmix-minmax 0.2 0.8 --mixup-switch-prob 0.4 --mixup-mode elem"
    flags += " --mixup-off-epoch 7 --smoothing 0.1 --bce-loss --bce-target-thresh 0.2 --drop 0.1"
    flags += " --clip-grad 0.01 --clip-mode agc --drop-path 0.2 --model-ema --model-ema-warmup"
    flags += " --model-ema-decay 0.99 --chain-decay none"
    recipe, default = parsed(*flags.split()), Recipe()
    for word in flags.split():
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            (group,) = [g.name for g in fields(Recipe) if hasattr(getattr(recipe, g.name), name)]
            value = getattr(getattr(recipe, group), name)
            assert value != getattr(getattr(default, group), name), word
            assert f"\n        {name}: " in type(getattr(recipe, group)).__doc__
    assert recipe.optim.opt_betas == (0.9, 0.95)
    assert recipe.augment.ratio == (0.5, 2)


def test_null_takes_a_list_back() -> None:
    flags = ["--config", "cutmix_minmax: [0.2, 0.8]"]
    assert parsed(*flags).optim.mixes
    assert not parsed(*flags, "--cutmix-minmax", "null").optim.mixes


def test_augmentation_reaches_timm() -> None:
    every = Augmentation(
        ratio=(0.5, 2.0),
        color_jitter_prob=0.8,
        grayscale_prob=0.1,
        gaussian_blur_prob=0.2,
        reprob=0.3,
        remode="rand",
        recount=2,
        train_interpolation="nearest",
    )
    config = {"input_size": (3, 32, 32), "interpolation": "bicubic", "crop_pct": 1.0}
    train, evaluate = (" ".join(str(t).split()) for t in make_transforms(config, augment=every))
    assert "ratio=(0.5, 2.0), interpolation=nearest" in train
    assert "p=0.8 ColorJitter" in train and "p=0.2 GaussianBlur" in train
    assert "RandomGrayscale(p=0.1)" in train
    assert "RandomErasing(p=0.3, mode=rand, count=(1, 2))" in train
    assert "bicubic" in evaluate and "nearest" not in evaluate
    plain = Augmentation(no_aug=True, train_interpolation="random", gaussian_blur_prob=1.0)
    assert "bicubic" in str(make_transforms(config, augment=plain)[0])


@pytest.mark.parametrize(
    ("augment", "size", "message"),
    [
        (Augmentation(grayscale_prob=0.1), (4, 32, 32), "in_chans=3"),
        (Augmentation(gaussian_blur_prob=0.1), (3, 32, 8), "--img-size"),
    ],
)
def test_what_would_fail_within_an_epoch_is_refused_before(
    augment: Augmentation, size: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make_transforms({"input_size": size}, augment=augment)


def test_a_recipe_in_python_needs_no_file() -> None:
    recipe = Recipe(ModelConfig("resnet18"), schedule=ScheduleConfig(sched="multistep", epochs=30))
    assert recipe.effective().schedule.decay_milestones == (12, 20, 24)


def test_the_page_on_training_names_every_flag() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    for kind in (OptimConfig, ScheduleConfig, RefineConfig, Augmentation):
        for field in fields(kind):
            assert re.search(rf"[` ]{field.name.replace('_', '-')}[`* ]", page), field.name
    assert all(f"| `{name}` |" in page for name in recipe_names())


def test_a_teacher_is_the_base_model_if_it_is_asked_and_on_the_hub() -> None:
    name = "hf-hub:me/dense@v1"
    assert DistillConfig(name, gamma=1).teacher_id == "me/dense"
    assert DistillConfig(name, gamma=0, kd_weight=0.5).teacher_id == "me/dense"
    assert DistillConfig(name, gamma=0).teacher_id is None
    assert DistillConfig("local-dir:runs/dense", gamma=1).teacher_id is None


@pytest.mark.parametrize("setting", ["--pairs all", "--reduction sum", "--sub-batch 64"])
@pytest.mark.parametrize("recipe", ["", "--recipe default"])
def test_settings_of_a_loss_that_is_off_are_refused(setting: str, recipe: str) -> None:
    flags = f"{recipe} --pruned slim --teacher dense {setting}".split()
    with pytest.raises(RecipeError, match="without a gamma; add --gamma"):
        parsed(*flags).effective()
    switched_off = parsed(*flags, "--gamma", "0").effective().distill
    assert switched_off.gamma == 0
