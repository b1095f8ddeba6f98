"""Which channels go: locally, globally, step by step; kept layers; the door's options."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.slims import images, lively
from timm_linop.architecture import base_of
from timm_linop.bench import Cost, count_macs, count_parameters
from timm_linop.errors import PruningError, UnknownLayerError
from timm_linop.pruning import Training, prune, pruned
from timm_linop.pruning.choice import by_scores
from timm_linop.pruning.criteria import importance_of
from timm_linop.pruning.iterative import step_by_step
from timm_linop.pruning.subject import Subject
from timm_linop.recipe import PruneConfig
from timm_linop.structure import Structure

l2 = partial(importance_of, "l2", images=[])


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    model = lively("test_resnet")
    return Subject(model, Structure.of(model, base_of(model)), images("test_resnet"), l2)


def chosen(subject: Subject, **options: Any) -> Any:
    return by_scores(subject, subject.scores, PruneConfig(**options))(subject.groups)


def split(subject: Subject, removed: Any) -> tuple[list[float], list[float]]:
    """Scores of what goes and of what stays."""
    gone = [subject.scores[name][units].tolist() for name, units in removed.items()]
    left = [
        subject.scores[g.layer][sorted({*range(g.size)} - {*removed[g.layer]})].tolist()
        for g in subject.groups
    ]
    return [*chain(*gone)], [*chain(*left)]


def test_costs_are_those_of_the_slim_model(subject: Subject) -> None:
    removed = chosen(subject, ratio=0.6, round_to=1)
    slim = subject.slim(removed, subject.model)
    size = (3, 64, 64)
    assert subject.cost(removed) == Cost(count_parameters(slim), count_macs(slim, size))
    assert subject.error(removed) < 1e-12


def test_each_group_loses_its_lowest(subject: Subject) -> None:
    removed = chosen(subject, ratio=0.25, round_to=1)
    for group in subject.groups:
        scores, gone = subject.scores[group.layer], removed[group.layer]
        assert len(gone) == group.size // 4
        assert set(gone) == set(scores.argsort()[: len(gone)].tolist())


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("name", ["target_params", "target_macs"])
def test_a_target_is_met_closely(subject: Subject, scope: str, name: str) -> None:
    removed = chosen(subject, scope=scope, round_to=1, floor=0.1, **{name: 0.4})
    attribute = {"target_params": "parameters", "target_macs": "macs"}[name]
    dense, slim = (getattr(subject.cost(each), attribute) for each in ({}, removed))
    assert 0.37 * dense < slim <= 0.4 * dense


def test_globally_the_lowest_of_all_go_but_no_group_falls_far_below_the_floor(
    subject: Subject,
) -> None:
    removed = chosen(subject, scope="global", ratio=0.6, floor=0.3, round_to=1)
    kept = {g.layer: 1 - len(removed[g.layer]) / g.size for g in subject.groups}
    assert len(set(kept.values())) > 3
    at_floor = {g.layer for g in subject.groups if kept[g.layer] < 0.3 + 1 / g.size}
    assert all(kept[g.layer] > 0.3 - 1 / g.size for g in subject.groups)
    gone, _ = split(subject, removed)
    for group in subject.groups:  # above the floor, whatever stays is worth more than all that went
        if group.layer not in at_floor:
            left = sorted({*range(group.size)} - {*removed[group.layer]})
            assert subject.scores[group.layer][left].min() >= max(gone)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_multiples(subject: Subject, scope: str) -> None:
    removed = chosen(subject, scope=scope, ratio=0.5, round_to=8)
    assert all((g.size - len(removed[g.layer])) % 8 == 0 for g in subject.groups)


def test_steps_end_at_the_same_widths_with_newer_scores(subject: Subject) -> None:
    once = chosen(subject, ratio=0.75, round_to=1)
    config = PruneConfig(ratio=0.75, round_to=1, iterative_steps=3)
    steps = step_by_step(subject, l2, config)(subject.groups)
    assert {name: len(units) for name, units in steps.items()} == {
        name: len(units) for name, units in once.items()
    }
    assert all(len(set(units)) == len(units) for units in steps.values())
    assert any(steps[name] != once[name] for name in once)


def test_layers_to_keep() -> None:
    model = lively("test_resnet")
    slim: Any = prune(model, images("test_resnet"), ratio=0.5, keep=["layer2.0.conv1", "layer3"])
    whole = {name for name, _ in model.named_modules() if name.startswith("layer3")}
    for name, module in slim.named_modules():
        if isinstance(module, nn.Conv2d) and (name in whole or name == "layer2.0.conv1"):
            assert module.out_channels == model.get_submodule(name).out_channels, name
    assert slim.layer2[0].conv2.out_channels < model.layer2[0].conv2.out_channels  # type: ignore
    with pytest.raises(UnknownLayerError, match=r"keep=\['layer9'\] matches no layer"):
        prune(model, images("test_resnet"), ratio=0.5, keep=["layer9"])


def test_statistics_are_taken_anew() -> None:
    model = lively("test_resnet")
    batches = [(torch.randn(6, 3, 64, 64), torch.zeros(6, dtype=torch.long)) for _ in range(3)]
    slim: Any = prune(model, images("test_resnet"), ratio=0.5, batches=batches, recalibrate=2)
    assert not slim.training
    inputs: list[Tensor] = []
    slim.conv1[1].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    with torch.no_grad():
        for x, _ in batches[:2]:
            slim(x)
    expected = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    assert torch.allclose(slim.conv1[1].running_mean, expected, atol=1e-6)


@pytest.mark.parametrize("given", ["batches", "training"])
@pytest.mark.parametrize("state", ["alive", "dead", "stale"])
def test_a_dead_net_is_told_of(state: str, given: str, caplog: pytest.LogCaptureFixture) -> None:
    model: Any = lively("test_resnet")
    if state == "dead":
        nn.init.constant_(model.bn1.bias, -1e4)  # which its ReLU takes for nothing
    if state == "stale":
        nn.init.constant_(model.bn1.running_var, 1e20)  # which the first fine-tuning step mends
    batches: Any = DataLoader(TensorDataset(torch.randn(6, 3, 64, 64), torch.arange(6)), 6)
    how: Any = {given: Training(batches, batches) if given == "training" else batches}
    slim = prune(model, images("test_resnet"), ratio=0.5, **how)
    logits = slim(next(iter(batches))[0])
    assert torch.allclose(logits, logits[:1].expand_as(logits)) == (state != "alive")
    assert ("is dead: it gives the same logits for all 6" in caplog.text) == (state == "dead")
    assert not slim.training and all(not module.training for module in slim.modules())


def test_batches_of_unknown_number_are_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([(image, 0) for image in torch.randn(6, 3, 64, 64)])

    model: Any = lively("test_resnet")
    nn.init.constant_(model.bn1.bias, -1e4)
    prune(model, images("test_resnet"), ratio=0.5, batches=DataLoader(Stream(), 6))
    assert "is dead" in caplog.text


def test_one_image_tells_nothing_of_death(caplog: pytest.LogCaptureFixture) -> None:
    one = [(torch.randn(1, 3, 64, 64), torch.zeros(1, dtype=torch.long))]
    prune(lively("test_resnet"), images("test_resnet"), ratio=0.5, batches=one)
    assert "is dead" not in caplog.text


def test_the_report_says_what_went() -> None:
    model = lively("test_resnet")
    slim, report = pruned(model, images("test_resnet"), ratio=0.5, round_to=1)
    told = report.to_dict()
    assert told["method"] == "magnitude" and told["options"]["ratio"] == 0.5
    group = told["groups"]["layer1.0.conv1"]
    assert group["units"] == 32 and group["kept"] == 16 == len(group["removed"])
    assert set(group["layers"]) == {"layer1.0.conv1", "layer1.0.bn1"}
    scores = torch.tensor(report.groups["layer1.0.conv1"].scores)
    assert group["scores"]["least"] == scores.min().item()
    left = sorted({*range(32)} - {*group["removed"]})
    weight = model.get_parameter("layer1.0.bn1.weight")
    assert torch.equal(slim.get_parameter("layer1.0.bn1.weight"), weight[left])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ration": 0.5}, r"ration= is no option of prune\(\).* Close names: 'ratio'"),
        ({"method": "curl"}, r"looks at images; pass batches="),
        ({"criterion": "taylor"}, r"looks at images; pass batches="),
        ({"recalibrate": 3}, r"looks at images; pass batches="),
        ({"method": "admm"}, r"trains before it removes anything; pass training="),
        ({"scope": "world"}, "scope='world' is unknown; use local or global"),
    ],
)
def test_options_are_checked_first(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(PruningError, match=problem):
        prune(nn.Identity(), **options)
