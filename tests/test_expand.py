"""Whole models: expand, contract and audit, what is left alone and why, and what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from timm_linop.errors import ExpansionError, UnknownLayerError
from timm_linop.expand import audit, contract, expand, is_expanded
from timm_linop.expanded import chain_of

from .test_chain import TOLERANCE, relative

TIMM_MODELS = timm.list_models("test_*")


def lively(name: str) -> nn.Module:
    """A timm model in which every branch counts: no zero gains, no neutral batch statistics."""
    model = timm.create_model(name)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and (tensor.ndim < 2 or not tensor.any()):
                tensor.uniform_(0.5, 1.0)
    return model.eval()


def small() -> nn.Sequential:
    """Names 0, 2, 3 have chains; 1 has no weight of two axes."""
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)
    return nn.Sequential(*layers).eval()


def names_of(model: nn.Module) -> list[str]:
    return [row.name for row in audit(model) if row.chain is not None]


def test_the_list_of_timm_models_holds_the_families_that_matter() -> None:
    families = {name.split("_")[1].rstrip("0123456789") for name in TIMM_MODELS}
    assert {"resnet", "efficientnet", "vit", "convnext", "nfnet", "mambaout"} <= families


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_models_keep_their_outputs_and_contract_to_themselves(
    name: str, dtype: torch.dtype
) -> None:
    model = lively(name).to(dtype)
    x = torch.randn(2, *model.pretrained_cfg["input_size"], dtype=dtype)
    slim = model.state_dict()
    kinds = {n: type(m) for n, m in model.named_modules()}
    with torch.no_grad():
        before = model(x)
        assert expand(model, rate=2, seed=0) is model
        between = model(x)
        assert contract(model) is model
        after = model(x)
    assert relative(between, before) <= TOLERANCE[dtype]
    assert relative(after, between) <= 1e-6
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    again = model.state_dict()
    assert list(again) == list(slim)
    for key, tensor in again.items():
        assert (tensor.shape, tensor.dtype) == (slim[key].shape, slim[key].dtype)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_nfnet"])
def test_every_convolution_and_linear_layer_of_a_timm_model_is_expanded(name: str) -> None:
    model = timm.create_model(name)
    kinds = (nn.Conv2d, nn.Linear)
    expected = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    assert names_of(expand(model, rate=1)) == expected


@pytest.mark.parametrize("rate", [1, 1.5, 3])
def test_an_audit_counts_what_there_is(rate: float) -> None:
    model = timm.create_model("test_efficientnet")
    slim = {n: m.weight.numel() for n, m in model.named_modules() if hasattr(m, "kernel_size")}
    before = audit(model)
    assert all(row.chain is None and row.reason == "" for row in before)
    assert {row.name: row.parameters_before for row in before if row.kind != "Linear"} == slim
    rest = sum(p.numel() for p in model.parameters()) - sum(r.parameters_before for r in before)
    expand(model, rate, exclude=["blocks.1"])
    rows = audit(model)
    assert [(r.name, r.kind, r.shape, r.parameters_before) for r in rows] == [
        (r.name, r.kind, r.shape, r.parameters_before) for r in before
    ]
    for row in rows:
        layer = model.get_submodule(row.name)
        own = [p for n, p in layer.named_parameters() if n != "bias"]
        assert row.parameters_after == sum(p.numel() for p in own)
        if row.name.startswith("blocks.1."):
            assert row.chain is None and row.parameters_after == row.parameters_before
        else:
            assert row.chain == tuple(tuple(p.shape) for p in own) and len(own) in (2, 3)
    assert rest + sum(r.parameters_after for r in rows) == sum(
        p.numel() for p in model.parameters()
    )


def test_an_audit_prints_as_a_table_with_totals() -> None:
    lines = str(audit(expand(small(), rate=2, exclude="3"))).splitlines()
    assert lines[0] == "0  Conv2d  6x3x3x3  -> 6x3, 12x6x3x3, 6x12  162 -> 738"
    assert lines[1] == "2  Conv2d  6x1x3x3  -> 12x1, 12x2x3x3, 6x2  54 -> 240"
    assert lines[2] == "3  Conv2d  2x6x1x1  plain  12 -> 12"
    assert lines[3] == "2 of 3 layers expanded; weights 228 -> 990 numbers"
    assert str(audit(nn.ReLU())) == "0 of 0 layers expanded; weights 0 -> 0 numbers"


CHOICES = [
    ({}, ["0.0", "0.2", "0.3", "1"]),
    ({"include": ["0"]}, ["0.0", "0.2", "0.3"]),
    ({"include": "1"}, ["1"]),
    ({"include": ["0.?"], "exclude": ["*.2"]}, ["0.0", "0.3"]),
    ({"exclude": ["0"]}, ["1"]),
    ({"exclude": ["1", "0.[03]"]}, ["0.2"]),
    ({"include": ["0.2", "0.2"]}, ["0.2"]),
    ({"exclude": []}, ["0.0", "0.2", "0.3", "1"]),
]


@pytest.mark.parametrize(("arguments", "expected"), CHOICES)
def test_include_and_exclude_take_names_patterns_and_modules(
    arguments: dict[str, list[str]], expected: list[str]
) -> None:
    model = nn.Sequential(small(), nn.Linear(2, 2))
    assert names_of(expand(model, **arguments)) == expected


REFUSED = [
    ({"rate": 0.5}, r"rate=0.5: .* >= 1"),
    ({"rate": 0}, r"rate=0: .*rate=0 in timm.create_model"),
    ({"rate": -3}, "rate=-3"),
    ({"rate": math.nan}, "rate=nan"),
    ({"rate": math.inf}, "rate=inf"),
    ({"rate": True}, "rate=True"),
    ({"rate": "3"}, "rate='3'"),
    ({"rate": None}, "rate=None"),
    ({"init": "orthogonl"}, r"Close names: 'orthogonal'"),
    ({"init": None}, "orthogonal, normal, balanced"),
    ({"include": ["0.9"]}, r"include=\['0.9'\] matches no layer.* Close names: '0"),
    ({"exclude": ["0.2", "hed"]}, r"exclude=\['hed'\] matches no layer. Close names: 'head'"),
    ({"include": ["0."]}, "matches no layer"),
    ({"exclude": "0.1"}, "matches no layer"),  # a BatchNorm
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_wrong_arguments_are_refused_and_the_model_is_left_as_it_was(
    arguments: dict[str, object], message: str
) -> None:
    model = nn.Sequential(small())
    model.add_module("head", nn.Linear(2, 2))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    layer_error = {"include", "exclude"} & set(arguments)
    with pytest.raises(UnknownLayerError if layer_error else ExpansionError, match=message):
        expand(model, **arguments)
    assert not is_expanded(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_expanding_twice_is_refused_and_so_is_contracting_a_slim_model() -> None:
    model = small()
    with pytest.raises(ExpansionError, match="holds no expanded layer"):
        contract(model)
    expand(model, include=["2"])
    before = list(model.state_dict())
    for again in (model, nn.Sequential(nn.Linear(2, 2), model)):
        with pytest.raises(ExpansionError, match=r"expanded already \(1 layers, from '.*2' on\)"):
            expand(again)
    assert list(model.state_dict()) == before
    assert is_expanded(model) and not is_expanded(contract(model))
    assert names_of(expand(model)) == ["0", "2", "3"]  # and once more


def zoo() -> nn.ModuleDict:
    """Everything with a weight that no chain can make, beside one layer that has one."""
    tied, masked, old = nn.Linear(3, 3), nn.Conv2d(2, 2, 1), nn.Linear(3, 3)
    integer, frozen_norm = nn.Linear(3, 3), nn.Linear(3, 3)
    integer.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    broken = nn.Linear(3, 3)
    broken.weight.data[1, 2] = math.nan
    zoo = {
        "fine": nn.Linear(3, 3),
        "transposed": nn.ConvTranspose2d(3, 3, 2),
        "table": nn.Embedding(5, 3),
        "norm": nn.LayerNorm((4, 3)),
        "tied": tied,
        "tied_too": nn.Linear(3, 3),
        "lazy": nn.LazyLinear(3),
        "weight_norm": parametrizations.weight_norm(frozen_norm),
        "old_weight_norm": weight_norm(old),
        "masked": prune.l1_unstructured(masked, "weight", amount=2),
        "integer": integer,
        "broken": broken,
    }
    zoo["tied_too"].weight = tied.weight
    return nn.ModuleDict(zoo)


REASONS = {
    "fine": "",
    "transposed": "ConvTranspose2d is no Conv1d/2d/3d or Linear layer",
    "table": "Embedding is no Conv1d/2d/3d or Linear layer",
    "norm": "LayerNorm is no Conv1d/2d/3d or Linear layer",
    "tied": "its weight is tied to another layer's",
    "tied_too": "its weight is tied to another layer's",
    "lazy": "its shape is not known before the first forward",
    "weight_norm": "its weight has a parametrization already",
    "old_weight_norm": "its weight is no parameter: a hook makes it (weight_norm, a pruning mask)",
    "masked": "its weight is no parameter: a hook makes it (weight_norm, a pruning mask)",
    "integer": "its weight is torch.int8, not floating point",
    "broken": "its weight holds NaN or infinity",
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("init", ["orthogonal", "balanced"])
def test_what_no_chain_can_make_is_left_alone_and_the_audit_says_why(init: str) -> None:
    model = zoo()
    assert {row.name: row.reason for row in audit(model)} == REASONS
    left = {n: p for n, p in model.named_parameters() if not n.startswith("fine.")}
    expand(model, init=init)
    assert names_of(model) == ["fine"]
    assert {row.name: row.reason for row in audit(model)} == REASONS
    now = {n: p for n, p in model.named_parameters() if not n.startswith("fine.")}
    assert now.keys() == left.keys() and all(now[n] is left[n] for n in left)
    assert "left alone: its weight is tied" in str(audit(model))
    assert chain_of(contract(model)["fine"]) is None


class Functional(nn.Module):
    """Weights that no layer calls its own, and vectors that look like matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.LSTM(4, 3)
        self.matrix, self.column = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 1))
        self.token, self.gain = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(4, 1, 1))
        self.table = nn.Parameter(torch.ones(1, 5, 4))
        self.shared = nn.Sequential(nn.Linear(4, 4))
        self.again = self.shared  # one layer in two places


BARE = {
    "matrix": "Functional",
    "column": "Functional",
    "table": "Functional",
    "attention.in_proj_weight": "MultiheadAttention",
    "rnn.weight_ih_l0": "LSTM",
    "rnn.weight_hh_l0": "LSTM",
}


def test_an_audit_names_every_matrix_that_is_no_layers_weight() -> None:
    model = Functional()
    for rows in (audit(model), audit(expand(model, rate=2))):
        bare = [row for row in rows if row.kind == "Parameter"]
        reasons = {n: f"a bare parameter of {o}, not a layer's weight" for n, o in BARE.items()}
        assert {row.name: row.reason for row in bare} == reasons
        assert all(
            row.chain is None and row.shape == tuple(model.get_parameter(row.name).shape)
            for row in bare
        )
        assert [r.name for r in rows if r not in bare] == ["attention.out_proj", "shared.0"]
    lines = str(audit(model)).splitlines()
    assert lines[-2].startswith("2 of 2 layers expanded; weights 32 -> ")
    assert lines[-1] == "6 bare parameters left alone, 172 numbers"


def test_a_layer_used_in_two_places_is_one_chain_and_one_layer_again() -> None:
    model, x = Functional(), torch.randn(2, 4)
    state, y = model.state_dict(), model.again(model.shared(x))
    expand(model, include=["shared"])
    assert relative(model.again(model.shared(x)), y) <= 1e-5
    model.load_state_dict(state, strict=True)
    assert relative(model.again(model.shared(x)), y) <= 1e-5
    contract(model)
    assert list(model.state_dict()) == list(state)
    assert model.again[0].weight is model.shared[0].weight


NAMED = [
    ("tied", "its weight is tied"),
    ("transposed", "ConvTranspose2d is no Conv1d/2d/3d or Linear layer"),
    ("broken", "its weight holds NaN"),
    ("attention.in_proj_weight", "a bare parameter of MultiheadAttention"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(("name", "reason"), NAMED)
def test_a_layer_asked_for_by_name_that_has_no_chain_is_refused(name: str, reason: str) -> None:
    model = zoo()
    model["attention"] = nn.MultiheadAttention(4, 2)
    for include in ([name], name, ["fine", name]):
        with pytest.raises(ExpansionError, match=rf"include=\['{name}'\] cannot .*: {reason}"):
            expand(model, include=include)
    assert not is_expanded(model)
    assert names_of(expand(model, include=["fin[e]", "t*"])) == ["fine"]  # patterns pass over it


def test_frozen_layers_stay_frozen_all_the_way() -> None:
    model = small().double()
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    expand(model)
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[2].parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(torch.randn(2, 3, 6, 6).double()).square().sum().backward()
    optimizer.step()
    contract(model)
    assert isinstance(model[0].weight, nn.Parameter) and not model[0].weight.requires_grad
    assert model[2].weight.requires_grad
    assert relative(model[0].weight, frozen) <= 1e-14


def test_one_seed_gives_one_model_and_each_layer_its_own_draw() -> None:
    slim = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    twins = [expand(copy.deepcopy(slim), seed=seed).state_dict() for seed in (5, 5, 6)]
    first = "0.parametrizations.weight.original0"
    same: list[Tensor] = [state[first] for state in twins]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    assert not torch.equal(same[0], twins[0][first.replace("0.", "1.", 1)])
    # A layer's draw hangs on its name alone, not on which other layers are expanded.
    alone = expand(copy.deepcopy(slim), seed=5, include=["1"]).state_dict()
    assert torch.equal(alone["1" + first[1:]], twins[0]["1" + first[1:]])
