"""torch-pruning's dependency graph, told what autograd knows and it does not read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch_pruning as tp
from torch_pruning import ops
from torch_pruning.dependency import Node


class Clock:
    """A deadline for work on the graph: on some, torch-pruning would walk in circles for ever."""

    def __init__(self) -> None:
        self.deadline = float("inf")

    def allow(self, seconds: float) -> None:
        """Let the work take so many seconds of this thread's own time, however busy the machine."""
        self.deadline = time.thread_time() + seconds


class _Watched(list[Any]):
    """The edges of a node; whoever walks along them after the deadline is stopped."""

    def __init__(self, edges: list[Any], clock: Clock) -> None:
        super().__init__(edges)
        self.clock = clock

    def __iter__(self) -> Iterator[Any]:
        if time.thread_time() > self.clock.deadline:
            raise TimeoutError("the channels could not be followed in the time allowed")
        return super().__iter__()


class ChannelGraph(tp.DependencyGraph):
    """A dependency graph that matches the outputs of a split by number and finds its channel axis.

    torch-pruning 1.6 takes the consumers of ``split``, ``chunk`` and ``unbind`` in the order in
    which it meets them, so the wrong channels go where they are consumed in another one; it knows
    channels on axis 1 only; it takes every 5-D ``expand`` for grouped-query attention; and since
    torch 2.15 renamed a saved attribute, it guesses at every view. Here each output gets a node of
    its own, in order, and the saved attributes read as torch-pruning expects them.

    Args:
        channels_last: The model computes on ``b x h x w x c`` tensors.
    """

    def __init__(self, *, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.clock = Clock()

    def _trace(self, *args: Any, **kwargs: Any) -> dict[Any, Node]:
        nodes = super()._trace(*args, **kwargs)
        for node in list(nodes.values()):
            if node.type in (ops.OPTYPE.SPLIT, ops.OPTYPE.UNBIND):
                self._number_outputs(nodes, node)
        for node in nodes.values():
            if node.type == ops.OPTYPE.EXPAND or _keeps_channels(node):
                node.type = ops.OPTYPE.ELEMENTWISE
            if node.type == ops.OPTYPE.CONCAT:
                node.module.concat_sizes = _sizes(node)
            node.enable_index_mapping = True  # which axis is cut is known, tokens or channels
            if node.grad_fn is not None:
                node.grad_fn = _Saved(node.grad_fn, self.channels_last)
            for edges in ("inputs", "outputs", "dependencies"):
                setattr(node, edges, _Watched(getattr(node, edges), self.clock))
        return nodes

    def _number_outputs(self, nodes: dict[Any, Node], split: Node) -> None:
        """Put one element-wise node behind each output of a split, in their order."""
        edges = [
            (consumer, position, number)
            for consumer in dict.fromkeys(split.outputs)
            for position, (function, number) in enumerate(_edges(consumer))
            if function is split.grad_fn
        ]
        if len(edges) != len(split.outputs):
            return  # a layer that runs twice: its node knows the edges of one run only
        ports = [self._port(nodes, split) for _ in range(_count_outputs(split.grad_fn))]
        for consumer, position, number in edges:
            consumer.inputs[position] = ports[number]
            ports[number].add_output(consumer)
        split.outputs = ports

    def _port(self, nodes: dict[Any, Node], split: Node) -> Node:
        port = Node(ops._ElementWiseOp(self._op_id, "output of a split"), grad_fn=None)
        self._op_id += 1
        port.add_input(split)
        nodes[port.module] = port
        return port


def _edges(node: Node) -> list[tuple[Any, int]]:
    """What ``node.inputs`` was made of, in the same order."""
    leaf = "accumulategrad"
    edges = getattr(node.grad_fn, "next_functions", ())
    return [(f, i) for f, i in edges if f is not None and leaf not in f.name().lower()]


def _sizes(concat: Node) -> list[int] | None:
    """Channels of each part of a concatenation; None leaves torch-pruning to infer them."""
    edges = _edges(concat)
    if len(edges) != len(concat.inputs):
        return None
    axis = concat.grad_fn._saved_dim
    axis = axis if axis < 2**63 else axis - 2**64  # a negative one reads as unsigned
    return [function._input_metadata[number].shape[axis] for function, number in edges]


def _count_outputs(split: Any) -> int:
    return len(split._input_metadata)


def _keeps_channels(node: Node) -> bool:
    """A view that does not flatten ``b x c x h x w`` to ``b x chw``, as before a linear layer."""
    if node.type != ops.OPTYPE.RESHAPE:
        return False
    before = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
    return len(before) != 4 or len(node.grad_fn._input_metadata[0].shape) != 2


class _Saved:
    """A ``grad_fn`` whose saved attributes read as torch-pruning expects them."""

    def __init__(self, grad_fn: Any, channels_last: bool) -> None:
        self.grad_fn = grad_fn
        self.channels_last = channels_last

    def __getattr__(self, name: str) -> Any:
        if name == "_saved_self_sizes":
            return self.grad_fn._saved_self_sym_sizes
        value = getattr(self.grad_fn, name)
        return self._axis(value) if name == "_saved_dim" else value

    def _axis(self, axis: int) -> int:
        """Name the channel axis as torch-pruning maps it, any other axis as it does not."""
        unbind = "Unbind" in self.grad_fn.name()
        if unbind:
            return 0  # a fused qkv: the parts lie one after the other in the channels
        axes = len(self.grad_fn._input_metadata[0].shape)
        axis = axis if axis < 2**63 else axis - 2**64 + axes  # a negative one reads as unsigned
        if "Slice" in self.grad_fn.name() and axes == 3:
            return 0  # tokens, or the columns of an attention map
        return int(axis == self._channel_axis(axes))

    def _channel_axis(self, axes: int) -> int:
        """Images are ``b x c x h x w`` or channels last; three axes are ``b x tokens x c``."""
        return 1 if axes == 4 and not self.channels_last else axes - 1
