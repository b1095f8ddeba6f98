"""A model run again and again, each time with one unit silenced, and only what that changes.

A unit is silenced where it is tied: every convolution, linear layer and norm of its group gives
zero for it. Nothing before the first of them can change, so what those modules gave is kept from
one ordinary run and handed out again. The same goes for layers of the group that pass each channel
on by itself (a norm behind a convolution, a depthwise convolution behind that): but for the zero
they give what they gave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ..channels.coupled import ChannelGroup
from ..channels.masked import first_tensor

_CONV = nn.modules.conv._ConvNd
_BATCH_NORM = nn.modules.batchnorm._NormBase


@contextmanager
def reruns(
    model: nn.Module, group: ChannelGroup, images: Tensor, called: Set[nn.Module]
) -> Iterator[tuple[Tensor, Callable[[int], Tensor]]]:
    """Run a model as it is, then as often as wanted with a unit silenced.

    Args:
        model: In eval mode; leave it alone within.
        group: Whose units.
        images: A batch, ``b x c x h x w``.
        called: The modules that a forward pass calls, see `called_modules`.

    Yields:
        The logits, ``b x classes``, and a function that takes a unit and gives the logits without.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> _ = [nn.init.ones_(weight) for weight in model.parameters()]
        >>> group = ChannelGroup("0", 2, {("0.weight", 0): torch.arange(2)})
        >>> images = torch.ones(1, 2)
        >>> with reruns(model, group, images, called_modules(model, images)) as (logits, without):
        ...     print(logits.item(), without(1).item())
        4.0 2.0
    """
    places = Places.of(group, model, called)
    with torch.no_grad(), ExitStack() as stack:
        record = _Record(model, places, images)
        for module, output in record.outputs.items():
            vars(module)["forward"] = _giving(output, fresh=module in record.to_copy)
            stack.callback(vars(module).pop, "forward")
        silence = _Silence(places)
        stack.enter_context(silence)

        def without(unit: int) -> Tensor:
            with silence.of(unit):
                return first_tensor(model(images))

        yield record.logits, without


def called_modules(model: nn.Module, images: Tensor) -> set[nn.Module]:
    """Tell which modules a forward pass calls: some are only read, for their weights.

    Args:
        model: In eval mode.
        images: One is enough, ``1 x c x h x w``.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> model.aside = nn.Identity()
        >>> len(called_modules(model[:1], torch.ones(1, 2)))
        2
    """
    called: set[nn.Module] = set()
    with torch.no_grad(), ExitStack() as stack:
        for module in model.modules():
            handle = module.register_forward_pre_hook(lambda module, _: called.add(module))
            stack.callback(handle.remove)
        model(images)
    return called


@dataclass(frozen=True)
class Places:
    """Where a group's units are to be silenced.

    Attributes:
        outputs: Layers and norms, and the unit of each of their output channels.
        parameters: What else holds numbers of units: a parameter, one of its axes, and the unit of
            each position there (embeddings of places, layer scales, layers that are only read).
        readers: Modules that may read those parameters.
    """

    outputs: Mapping[nn.Module, Tensor]
    parameters: Sequence[tuple[Tensor, int, Tensor]]
    readers: Set[nn.Module]

    @staticmethod
    def of(group: ChannelGroup, model: nn.Module, called: Set[nn.Module]) -> Places:
        """Look a group's tensors up in a model."""
        outputs: dict[nn.Module, Tensor] = {}
        for name, units in {**group.filters(model), **group.scales(model)}.items():
            owner, _, key = name.rpartition(".")
            if key in ("weight", "bias") and (module := model.get_submodule(owner)) in called:
                outputs[module] = units
        named, parameters, readers = dict(model.named_parameters()), [], set()
        for (name, axis), units in group.units.items():
            owner = name.rpartition(".")[0]
            module = model.get_submodule(owner)
            only_input = isinstance(module, _CONV | nn.Linear) and axis == 1
            if name in named and module not in outputs and not only_input:
                parameters.append((named[name], axis, units))
                reader = owner if module in called else owner.rpartition(".")[0]
                readers.add(model.get_submodule(reader))
        return Places(outputs, parameters, readers)


@dataclass(eq=False)
class _Known:
    """A tensor's state when it was known, and whether units are zero in it."""

    version: int
    units: Tensor | None


class _Record:
    """An ordinary run that keeps the outputs which silencing a unit does not change.

    Attributes:
        logits: What the model gives.
        outputs: Modules to what they gave, units not silenced.
        to_copy: Those whose output is changed in place later on, by the model or to silence a unit.
    """

    def __init__(self, model: nn.Module, places: Places, images: Tensor) -> None:
        self.outputs: dict[nn.Module, Tensor] = {}
        self.to_copy: set[nn.Module] = set(places.outputs)
        self._places, self._begun = places, False
        self._calls: Counter[nn.Module] = Counter()
        self._given: dict[nn.Module, tuple[Tensor, int]] = {}
        self._known: Any = WeakIdKeyDictionary()  # a tensor is itself only, and may be freed
        with ExitStack() as stack:
            for module in model.modules():
                stack.callback(module.register_forward_pre_hook(self._before).remove)
                stack.callback(module.register_forward_hook(self._after).remove)
            self.logits = first_tensor(model(images)).clone()
        for module, (given, version) in self._given.items():
            if given._version != version:
                self.to_copy.add(module)
        self._given.clear()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._calls[module] += 1
        if not self._begun and (module in self._places.outputs or module in self._places.readers):
            self._begun = True
            for tensor in inputs:
                if isinstance(tensor, Tensor):
                    self._known[tensor] = _Known(tensor._version, None)

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._calls[module] > 1:  # which call is which could not be told again
            self.outputs.pop(module, None)
            return
        if not isinstance(output, Tensor) or (self._begun and not self._settled(module, inputs)):
            return
        for inner in module.modules():  # will not be called
            self.outputs.pop(inner, None)
            self._given.pop(inner, None)
        self.outputs[module] = output.clone()
        self._given[module] = output, output._version
        self._known[output] = _Known(output._version, self._places.outputs.get(module))

    def _settled(self, module: nn.Module, inputs: tuple[Any, ...]) -> bool:
        """Tell whether a layer of the group gives the same but for the silenced unit."""
        units = self._places.outputs.get(module)
        known = self._known.get(inputs[0]) if units is not None and len(inputs) == 1 else None
        if known is None or known.version != inputs[0]._version:
            return False
        if known.units is None or units is None:
            return True
        return _channel_by_channel(module) and torch.equal(known.units, units)


def _channel_by_channel(module: Any) -> bool:
    if isinstance(module, _CONV):
        return module.groups == module.in_channels == module.out_channels
    return isinstance(module, _BATCH_NORM)


def _giving(output: Tensor, fresh: bool) -> Callable[..., Tensor]:
    return lambda *_, **__: output.clone() if fresh else output


class _Silence:
    """Hooks that put zeros where a unit is; open, and with no unit chosen, they do nothing."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._unit: int | None = None
        self._handles = ExitStack()

    def __enter__(self) -> None:
        for module, units in self._places.outputs.items():
            hook = module.register_forward_hook(self._hook(units))
            self._handles.callback(hook.remove)

    def __exit__(self, *error: object) -> None:
        self._handles.close()

    @contextmanager
    def of(self, unit: int) -> Iterator[None]:
        """Silence one unit."""
        self._unit = unit
        before = [parameter.clone() for parameter, _, _ in self._places.parameters]
        try:
            for parameter, axis, units in self._places.parameters:
                parameter.index_fill_(axis, _rows(units, unit, parameter), 0)
            yield
        finally:
            self._unit = None
            for (parameter, _, _), old in zip(self._places.parameters, before, strict=True):
                parameter.copy_(old)

    def _hook(self, units: Tensor) -> Any:
        def silence(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if self._unit is not None:
                axis = channel_axis(module, output, len(units))
                output.index_fill_(axis, _rows(units, self._unit, output), 0)

        return silence


def _rows(units: Tensor, unit: int, like: Tensor) -> Tensor:
    return (units == unit).nonzero().flatten().to(like.device)


def channel_axis(module: nn.Module, output: Tensor, channels: int) -> int:
    """Tell which axis of a layer's or norm's output its channels lie on.

    Args:
        module: A convolution, linear layer or norm.
        output: What it gave.
        channels: How many there are.

    Example:
        >>> channel_axis(nn.Conv2d(3, 4, 1), torch.ones(2, 4, 4, 4), 4)
        1
        >>> channel_axis(nn.LayerNorm(4), torch.ones(2, 4, 4, 4), 4)
        -1
    """
    in_the_middle = isinstance(module, _CONV | _BATCH_NORM | nn.GroupNorm)
    # timm's norms over the channels of maps are subclasses of those over the last axis
    in_the_middle |= type(module).__name__.endswith("2d")
    return 1 if in_the_middle or output.shape[-1] != channels else -1
