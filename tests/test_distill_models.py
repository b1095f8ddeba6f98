"""SP-KD's way into models: which layers are paired, how they are tapped, and the teacher."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from timm_linop.distill import PAIRS, Taps, Teacher, paired_layers
from timm_linop.errors import RecipeError, UnknownLayerError
from timm_linop.expand import contract, expand

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

STAGES = {
    "test_resnet": ["conv1.6", *(f"layer{i}.0.conv{3 if i == 3 else 2}" for i in (1, 2, 3, 4))],
    "test_efficientnet": [
        "conv_stem",
        "blocks.0.0.conv",
        *(f"blocks.{i}.0.conv_pwl" for i in (1, 2, 3)),
        "conv_head",
    ],
    "test_vit": ["patch_embed.proj", *(f"blocks.{i}.mlp.fc2" for i in range(6))],
    "test_convnext": ["stem.0", *(f"stages.{i}.blocks.{j}.mlp.fc2" for i, j in enumerate("0131"))],
    # A gate that scales what conv3 gives is not the block's output.
    "test_nfnet": ["stem.conv4", *(f"stages.{i}.0.conv3" for i in range(3)), "final_conv"],
    "test_byobnet": [
        "stem.conv",
        "stages.0.0.conv2_1x1.conv",
        "stages.1.0.conv2_kxk.conv",
        "stages.2.0.conv2_kxk.conv",
        "stages.3.0.conv3_1x1.conv",
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_end_in_their_last_convolution_or_linear_layer(name: str) -> None:
    model = timm.create_model(name)
    assert paired_layers(model, model, "stages") == STAGES[name]
    assert paired_layers(model, model, "last") == STAGES[name][-1:]


def test_blocks_are_finer_than_stages() -> None:
    model = timm.create_model("test_convnext")
    depths = [1, 2, 4, 2]
    expected = [
        f"stages.{i}.blocks.{j}.mlp.fc2" for i, depth in enumerate(depths) for j in range(depth)
    ]
    assert paired_layers(model, model, "blocks") == ["stem.0", *expected]


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout", "test_maxvit"])
def test_all_is_every_convolution_and_linear_layer_in_order(name: str) -> None:
    model = timm.create_model(name)
    expected = [n for n, module in model.named_modules() if isinstance(module, KINDS)]
    assert paired_layers(model, model, "all") == expected


@pytest.mark.parametrize("pairs", PAIRS)
def test_an_expanded_student_has_the_same_pairs(pairs: str) -> None:
    teacher = timm.create_model("test_resnet")
    student = expand(copy.deepcopy(teacher), rate=1)
    names = paired_layers(teacher, teacher, pairs)
    assert paired_layers(student, teacher, pairs) == names
    assert paired_layers(contract(student), teacher, pairs) == names
    head = teacher.pretrained_cfg["classifier"]
    assert (head in names) is (pairs == "all")
    assert any("downsample" in name for name in names) is (pairs == "all")


def test_names_are_taken_as_given_and_unknown_ones_refused_with_close_ones() -> None:
    teacher, student = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    given = ["layer2.0.conv1", "conv1.6"]
    assert paired_layers(student, teacher, given) == given
    with pytest.raises(UnknownLayerError, match=r"the teacher has not.*Close names: .*'layer2.0.c"):
        paired_layers(student, teacher, ["layer2.0.conv9"])
    del student.layer2[0].conv1
    with pytest.raises(UnknownLayerError, match=r"'layer2.0.conv1', which the student has not"):
        paired_layers(student, teacher, given)
    with pytest.raises(UnknownLayerError, match="which the student has not"):
        paired_layers(timm.create_model("test_vit"), teacher, "stages")


def test_a_model_that_does_not_tell_its_blocks_is_refused_but_can_give_all() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RecipeError, match="Sequential does not say where its blocks are"):
        paired_layers(model, model, "blocks")
    assert paired_layers(model, model, "all") == ["0", "1"]
    assert paired_layers(model, model, "last") == ["1"]


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_taps_give_the_outputs_themselves_and_leave_no_hook() -> None:
    model = expand(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), rate=2)
    x = torch.randn(5, 4)
    with Taps(model, ["0", "2"]) as activations:
        assert hooks(model) == 2 and activations == {}
        y = model(x)
    assert hooks(model) == 0
    torch.testing.assert_close(activations["0"], x @ model[0].weight.T + model[0].bias)
    assert activations["2"] is y and list(activations) == ["0", "2"]
    activations["0"].sum().backward()
    assert all(p.grad is not None for p in model[0].parameters())
    model(torch.randn(1, 4))
    assert activations["2"] is y  # closed


class Stop(Exception):
    pass


def test_taps_are_removed_when_the_forward_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(Stop), Taps(model, ["0"]):
        raise Stop
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), Taps(model, ["0", "1"]):
        model(torch.randn(1, 7))
    assert hooks(model) == 0


def test_an_unknown_name_leaves_no_hook_on_the_known_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(AttributeError), Taps(model, ["0", "9"]):
        model(torch.randn(1, 4))
    assert hooks(model) == 0


class Watching(nn.Module):
    """Gives what it was given, through a BatchNorm whose statistics would move in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.dropout(self.norm(x))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("own_mean", "own_std"), [((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)), ((0.0,) * 3, (1.0,) * 3)]
)
def test_the_teacher_sees_the_images_in_its_own_normalisation(
    own_mean: tuple[float, ...], own_std: tuple[float, ...]
) -> None:
    images = torch.rand(2, 3, 4, 5)
    students, expected = torch.empty_like(images), torch.empty_like(images)
    for c in range(3):
        students[:, c] = (images[:, c] - MEAN[c]) / STD[c]
        expected[:, c] = (images[:, c] - own_mean[c]) / own_std[c]
    model = Watching()
    Teacher(model, MEAN, STD, own_mean, own_std)(students)
    torch.testing.assert_close(model.seen, expected, rtol=1e-5, atol=1e-6)


def test_a_teacher_with_the_students_normalisation_sees_the_same_images() -> None:
    model, x = Watching(), torch.randn(2, 3, 4, 4)
    Teacher(model, MEAN, STD, MEAN, STD)(x)
    assert torch.equal(model.seen, x)


def test_the_teacher_stays_frozen_in_eval_mode() -> None:
    model, x = Watching(), torch.randn(2, 3, 4, 4)
    teacher = Teacher(model, MEAN, STD, MEAN, STD)
    whole = nn.ModuleDict({"teacher": teacher, "student": nn.BatchNorm2d(3)}).train()
    assert whole["student"].training
    assert not any(module.training for module in teacher.modules())
    before = copy.deepcopy(teacher.state_dict())
    y = teacher(x.requires_grad_())
    assert torch.equal(y, teacher(x)) and not y.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert set(teacher.state_dict()) == {f"model.{key}" for key in model.state_dict()}
    assert teacher.train(True) is teacher and not model.norm.training
