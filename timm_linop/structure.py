"""Structure: all that a slim checkpoint needs besides its tensors, as plain, checkable data.

A slim model is a timm architecture some of whose tensors are smaller. So its structure is the
architecture's name, the shapes that differ, and the few whole numbers that shapes do not say
(heads, groups). It comes from untrusted files: every entry is checked against the dense
architecture before memory is taken, and nothing outside `ATTRIBUTES` is ever set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from . import rules, wire
from .architecture import base_of, dense_model, free_axes, model_args_of, tensors_of, whole_model
from .limits import check_names, check_slimmer, differing, rules_of
from .probing import settle
from .rebuild import resize
from .rules import Rule, attention, channels, columns, rows

VERSION = 1

# What a structure may set, by class (or a base class) with the file it stands in; nothing else is
# ever set. Where a rule stands, the value follows from the slim layers and from what reaches the
# module; a file need only say what departs from that. Where None stands, only a file can tell.
# From a file come whole numbers, or short lists of them, at most as large as the dense ones, and
# factors up to 1.
ATTRIBUTES: dict[str, dict[str, Rule | None]] = {
    "conv._ConvNd": {"groups": None},
    # --- attention: heads, their channels, the scale of their products
    **dict.fromkeys(
        (
            "attention.Attention",
            "beit.Attention",
            "cait.TalkingHeadAttn",
            "coat.FactorAttnConvRelPosEnc",
            "convit.MHSA",
            "davit.WindowAttention",
            "hieradet_sam2.MultiScaleAttention",
            "maxxvit.Attention2d",
            "maxxvit.AttentionCl",
            "metaformer.Attention",
            "mvitv2.MultiScaleAttention",
            "nest.Attention",
            "swin_transformer.WindowAttention",
            "twins.LocallyGroupedAttn",
            "vision_transformer_relpos.RelPosAttention",
            "visformer.Attention",
            "volo.Attention",
        ),
        attention(rows("qkv", 3)),
    ),
    **dict.fromkeys(
        (
            "cait.ClassAttn",
            "nextvit.EfficientAttention",
            "pvt_v2.Attention",
            "twins.GlobalSubSampleAttn",
            "volo.ClassAttention",
        ),
        attention(rows("q")),
    ),
    "crossvit.CrossAttention": attention(rows("wq")),
    "hiera.MaskUnitAttention": attention(rows("qkv", 3), heads="heads"),
    "tnt.Attention": attention(rows("qk", 2)),
    "gcvit.WindowAttentionGlobal": attention(columns("proj")),
    "mobilevit.LinearSelfAttention": {"embed_dim": columns("out_proj")},
    "shvit.SHSA": {"dim": channels, "pdim": columns("qkv.c"), "qk_dim": rules.shvit_keys},
    # --- where a tensor is split: the sizes of the parts
    "coat.ConvRelPosEnc": {"channel_splits": rules.outputs_of_each("conv_list")},
    "cspnet.CrossStage": {"expand_chs": rows("conv_exp.conv")},
    "cspnet.CrossStage3": {"expand_chs": rows("conv_exp.conv")},
    "dla.DlaBottle2neck": {"width": rules.share_of_rows("conv1", "scale")},
    "fasternet.Partial_conv3": {
        "dim_conv3": columns("partial_conv3"),
        "dim_untouched": rules.rest_of("partial_conv3"),
    },
    "focalnet.FocalModulation": {"input_split": rules.focal_splits},
    "ghostnet.GhostModule": {"out_chs": None},
    "ghostnet.GhostModuleV3": {"out_chs": None},
    "inception_next.InceptionDWConv2d": {"split_indexes": rules.inception_splits},
    "mambaout.GatedConvBlock": {"split_indices": rules.gated_splits},
    "mixed_conv2d.MixedConv2d": {"splits": rules.inputs_of_each()},
    "res2net.Bottle2neck": {"width": rules.share_of_rows("conv1", "scale")},
    "rexnet.LinearBottleneck": {"in_channels": channels},
    "selective_kernel.SelectiveKernel": {"in_channels": channels},
    # --- layers whose width stands in no weight, or beside one
    "blur_pool.BlurPool2d": {"channels": channels},
    "metaformer.Scale": {"shape": rules.broadcast_shape},
    "tnt.PixelEmbed": {"in_dim": rows("proj")},
}

_SETTABLE = {attribute for row in ATTRIBUTES.values() for attribute in row}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Structure:
    """The slim shape of a timm model.

    Attributes:
        base: The dense architecture's timm name, without tag.
        shapes: Tensor name to slim shape, for the tensors that differ from the dense ones. None
            stands for what the model is built with: the classifier's outputs, the first layer's
            inputs.
        attributes: Module name to the `ATTRIBUTES` that differ from the dense ones.

    Example:
        >>> import timm
        >>> Structure.of(timm.create_model("test_resnet", num_classes=3))
        Structure(base='test_resnet', shapes={}, attributes={})
    """

    base: str
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, base: str | None = None) -> Structure:
        """Read the structure of a slim model.

        Args:
            model: A pruned (or dense) timm model, not expanded. Channels that are zero wherever
                they come from, or masked by `torch.nn.utils.prune`, count as removed.
            base: Its architecture's timm name; None reads it from ``model.pretrained_cfg``.

        Returns:
            What must be known to rebuild it.

        Raises:
            StructureError: If the model is no slim form of ``base``.
        """
        base = base or base_of(model)
        args = model_args_of(model)
        model = without_zeros(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}
        structure = cls._from_shapes(base, shapes, args)
        cut = dense_model(base, **args)
        resize(cut, structure.shapes, {})
        told = differing(model, cut, ATTRIBUTES, ruled=False)
        rebuilt = cls(base, structure.shapes, told).build(dense_model(base, **args))
        for name, values in differing(model, rebuilt, ATTRIBUTES, ruled=True).items():
            told[name] = {**told.get(name, {}), **values}
        return cls(base, structure.shapes, told)

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Tensor], base: str, **model_args: Any
    ) -> Structure:
        """Read the structure off a bare state dict: shapes decide.

        Args:
            state_dict: A slim model's tensors under timm's own names.
            base: The dense architecture's timm name.
            **model_args: What else the model was built with (``img_size``...).

        Returns:
            A structure without attributes, as shapes do not tell them.

        Raises:
            StructureError: If the tensors are not those of a slim ``base``.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        return cls._from_shapes(base, shapes, model_args)

    @classmethod
    def _from_shapes(
        cls, base: str, shapes: Mapping[str, tuple[int, ...]], args: Mapping[str, Any]
    ) -> Structure:
        dense = dense_model(base, **args)
        dense_shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(dense)}
        check_names(base, dense, shapes)
        free = free_axes(dense)
        differing: dict[str, Shape] = {}
        for name, shape in shapes.items():
            free_axis = free.get(name)
            slim = tuple(None if axis == free_axis else size for axis, size in enumerate(shape))
            full = tuple(
                None if s is None else f for s, f in zip(slim, dense_shapes[name], strict=False)
            )
            if slim != full:
                differing[name] = slim
        structure = cls(base, differing)
        _check(structure, dense)
        return structure

    def build(self, model: nn.Module) -> nn.Module:
        """Slim a freshly built dense model in place.

        Each tensor keeps its leading slice, a sound initialisation; load weights afterwards.

        Args:
            model: ``timm.create_model(self.base, ...)``, of any number of classes and input
                channels; layers it was built without (``num_classes=0``, ``features_only``) are
                passed over.

        Returns:
            ``model`` itself, its layers' hyper-parameters and feature metadata made to agree.

        Raises:
            StructureError: If the structure is not one of this model, or contradicts itself.
        """
        structure = self._for(model)
        _check(structure, model)
        resize(model, structure.shapes, structure.attributes)
        classifier = {name for name, axis in free_axes(model).items() if axis == 0}
        follow = rules_of(model, structure.attributes, ATTRIBUTES)
        settle(model, follow, new_classifier=not classifier & set(structure.shapes))
        return model

    def narrow(self, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Cut a model that has this structure further down, in place.

        Args:
            model: A model as it was built.
            shapes: Tensor name to smaller shape; StructureError if they contradict each other.
        """
        resize(model, shapes, {})
        settle(model, rules_of(model, {}, ATTRIBUTES), new_classifier=False)

    def _for(self, model: nn.Module) -> Structure:
        """The part of it that a model built without head or last layers has."""
        names = {name for name, _ in tensors_of(model)}
        if names >= set(self.shapes):
            return self
        _check(self, whole_model(self.base))
        modules = {name for name, _ in model.named_modules()}
        return Structure(
            self.base,
            {name: shape for name, shape in self.shapes.items() if name in names},
            {name: values for name, values in self.attributes.items() if name in modules},
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the structure as JSON-ready data.

        Example:
            >>> Structure("resnet18").to_dict()
            {'version': 1, 'base': 'resnet18', 'shapes': {}, 'attributes': {}}
        """
        return {
            "version": VERSION,
            "base": self.base,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "attributes": {name: dict(values) for name, values in self.attributes.items()},
        }

    @classmethod
    def from_dict(cls, data: Any) -> Structure:
        """Read what `to_dict` wrote, from a file that nobody vouches for.

        Args:
            data: Parsed JSON.

        Returns:
            The structure, well-formed; `build` checks it against the architecture.

        Raises:
            StructureError: If anything in it is not what `to_dict` writes.

        Example:
            >>> Structure.from_dict({"version": 1, "base": "resnet18", "shapes": {"a": [-1]}})
            Traceback (most recent call last):
            ...
            timm_linop.errors.StructureError: structure: shapes['a'] is [-1], not a list of sizes...
        """
        return cls(*wire.read(data, VERSION, _SETTABLE))


def without_zeros(model: nn.Module) -> nn.Module:
    """Remove the zero and masked channels of a timm model, see `timm_linop.channels.zeros`.

    Args:
        model: It is left as it is.

    Returns:
        A slim copy; the model itself where it has none.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_resnet")
        >>> without_zeros(model) is model
        True
    """
    from .channels.zeros import without_zero_channels  # brings torch-pruning

    return without_zero_channels(model, Structure("").narrow)


def _check(structure: Structure, dense: nn.Module) -> None:
    check_slimmer(structure.base, dense, structure.shapes, structure.attributes, ATTRIBUTES)
