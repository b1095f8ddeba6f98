"""Taps: what named layers give, read while a context is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn


class Taps:
    """Collect the outputs of named layers while the context is open.

    Args:
        model: Any model; under DistributedDataParallel, the module inside.
        names: Names of its layers; or a mapping, from the name under which a layer's output is kept
            to the layer's own.
        see: What is kept of an output; None keeps it whole.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> with Taps(model, ["0"]) as activations:
        ...     _ = model(torch.randn(2, 4))
        >>> activations["0"].shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str] | Mapping[str, str],
        see: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.model, self.see = model, see
        self.names = names if isinstance(names, Mapping) else {name: name for name in names}
        self.seen: dict[str, Any] = {}

    def __enter__(self) -> dict[str, Any]:
        # All are known, or none gets a hook.
        modules = {key: self.model.get_submodule(name) for key, name in self.names.items()}
        self._handles = [
            module.register_forward_hook(self._keep(key)) for key, module in modules.items()
        ]
        return self.seen

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.seen[name] = output if self.see is None else self.see(output)

        return hook
