"""Structure: all that a slim checkpoint needs besides its tensors, as plain, checkable data.

A slim model is a timm architecture some of whose tensors are smaller. So its structure is the
architecture's name, the shapes that differ, and the few whole numbers that shapes do not say
(heads, groups). It comes from untrusted files: every entry is checked against the dense
architecture before memory is taken, and nothing outside `ATTRIBUTES` is ever set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from . import wire
from .architecture import (
    base_of,
    dense_model,
    free_axes,
    known_architecture,
    model_args_of,
    tensors_of,
    whole_model,
)
from .errors import StructureError, close_names
from .rebuild import resize, settle

VERSION = 1

# The whole-number attributes a structure may set, by module class (or a base class of it). Each is
# at least 1 and at most what the dense architecture has.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "_ConvNd": ("groups",),
    "Attention": ("num_heads", "head_dim", "attn_dim"),
}

_SETTABLE = {attribute for names in ATTRIBUTES.values() for attribute in names}

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
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, base: str | None = None) -> Structure:
        """Read the structure of a slim model.

        Args:
            model: A pruned (or dense) timm model, not expanded.
            base: Its architecture's timm name; None reads it from ``model.pretrained_cfg``.

        Returns:
            What must be known to rebuild it.

        Raises:
            StructureError: If the model is no slim form of ``base``.
        """
        base = base or base_of(model)
        args = model_args_of(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model)}
        structure = cls._from_shapes(base, shapes, args)
        dense = dense_model(base, **args)
        resize(dense, structure.shapes, {})
        return cls(base, structure.shapes, _differing_attributes(model, dense))

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
        _check_names(base, dense, shapes)
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
        _check_against(structure, dense)
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
        _check_against(structure, model)
        resize(model, structure.shapes, structure.attributes)
        classifier = {name for name, axis in free_axes(model).items() if axis == 0}
        settle(model, new_classifier=not classifier & set(structure.shapes))
        return model

    def _for(self, model: nn.Module) -> Structure:
        """The part of it that a model built without head or last layers has."""
        names = {name for name, _ in tensors_of(model)}
        if names >= set(self.shapes):
            return self
        _check_against(self, whole_model(self.base))
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
        data = wire.expect(data, dict, "structure")
        if type(data.get("version")) is not int or data["version"] != VERSION:
            raise StructureError(
                f"structure: version {data.get('version')!r} is not {VERSION}, the one this "
                "timm_linop reads; upgrade it (pip install -U timm-linop)."
            )
        unknown = sorted(map(str, set(data) - {"version", "base", "shapes", "attributes"}))
        if unknown:
            raise StructureError(
                f"structure: unknown entry {unknown[0][:80]!r}; save the model again with save()."
            )
        base = known_architecture(wire.expect(data.get("base"), str, "structure: base"))
        shapes = wire.expect(data.get("shapes", {}), dict, "structure: shapes")
        attributes = wire.expect(data.get("attributes", {}), dict, "structure: attributes")
        return cls(
            base,
            {wire.name(key): wire.shape(key, value) for key, value in shapes.items()},
            {
                wire.name(key, root=True): wire.numbers(key, value, _SETTABLE)
                for key, value in attributes.items()
            },
        )


def _check_names(base: str, dense: nn.Module, shapes: Mapping[str, Any]) -> None:
    names = {name for name, _ in tensors_of(dense)}
    absent, foreign = names - set(shapes), set(shapes) - names
    for missing, where in ((absent, "the slim model"), (foreign, base)):
        if missing:
            name = min(missing)
            raise StructureError(
                f"{where} has no tensor {name!r} ({len(missing)} such): the weights belong to "
                f"another architecture than {base}, or are expanded. Name the architecture they "
                "were pruned from, or contract(model) first."
            )


def _check_against(structure: Structure, dense: nn.Module) -> None:
    """Refuse shapes and attributes that are no slimmer form of the dense model's."""
    tensors = dict(tensors_of(dense))
    for name, shape in structure.shapes.items():
        if name not in tensors:
            raise StructureError(
                f"{structure.base} has no tensor {name!r}: the structure belongs to another "
                "architecture." + close_names(name, tensors)
            )
        full = tuple(tensors[name].shape)
        fits = len(shape) == len(full) and all(
            s is None or 1 <= s <= f for s, f in zip(shape, full, strict=True)
        )
        if not fits:
            raise StructureError(
                f"{name} has shape {list(shape)}, but {structure.base}'s own is {list(full)} and "
                "pruning only makes it smaller; name the architecture it was pruned from."
            )
    for name, values in structure.attributes.items():
        _check_attributes(structure.base, dense, name, values)


def _check_attributes(base: str, dense: nn.Module, name: str, values: Mapping[str, int]) -> None:
    modules = dict(dense.named_modules())
    if name not in modules:
        raise StructureError(f"{base} has no module {name!r}." + close_names(name, modules))
    allowed = set(_allowed(modules[name]))
    for attribute, value in values.items():
        if attribute not in allowed:
            raise StructureError(
                f"{name}.{attribute}: a structure may not set this attribute of a "
                f"{type(modules[name]).__name__}; it may set {sorted(allowed) or 'none'}."
            )
        full = getattr(modules[name], attribute)
        if not 1 <= value <= full:
            raise StructureError(
                f"{name}.{attribute} is {value}, but {base}'s own is {full} and pruning only "
                "makes it smaller."
            )


def _allowed(module: nn.Module) -> Iterator[str]:
    classes = {cls.__name__ for cls in type(module).__mro__}
    for name, attributes in ATTRIBUTES.items():
        if name in classes:
            yield from (a for a in attributes if isinstance(getattr(module, a, None), int))


def _differing_attributes(model: nn.Module, rebuilt: nn.Module) -> dict[str, dict[str, int]]:
    """What the slim model has and a rebuild from shapes alone has not."""
    found: dict[str, dict[str, int]] = {}
    others = dict(rebuilt.named_modules())
    for name, module in model.named_modules():
        rebuilt_one = others.get(name, nn.Identity())  # a user may add layers without weights
        for attribute in set(_allowed(rebuilt_one)) & set(_allowed(module)):
            value = getattr(module, attribute)
            if value != getattr(rebuilt_one, attribute):
                found.setdefault(name, {})[attribute] = int(value)
    return found
