"""A composed weight, kept while its factors do not change: evaluation composes once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class KeptProduct:
    """Remembers a product of tensors until one of them changes.

    Every in-place change that autograd can see counts (optimizers, ``load_state_dict``, moving
    averages); a change through ``.data``, which hides from autograd, does not, as long as the
    model stays in eval mode.

    Example:
        >>> kept, (a, b) = KeptProduct(), (torch.eye(2), torch.ones(2, 2))
        >>> product = kept.of((a, b), torch.matmul)
        >>> kept.of((a, b), torch.matmul) is product
        True
        >>> _ = a.mul_(2)
        >>> kept.of((a, b), torch.matmul)
        tensor([[2., 2.],
                [2., 2.]])
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the product and of the factors."""
        # The factors as they were: as long as they are held, no other tensor has their address.
        self._factors: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._product: Tensor | None = None

    def of(self, factors: tuple[Tensor, ...], compose: Callable[..., Tensor]) -> Tensor:
        """Return ``compose(*factors)``, computed anew only if a factor has changed.

        Args:
            factors: Plain tensors, outside autograd.
            compose: What multiplies them.
        """
        if self._product is None or not self._are_same(factors):
            self._product = compose(*factors)
            self._factors = tuple(factor.detach() for factor in factors)
            self._versions = tuple(factor._version for factor in factors)
        return self._product

    def _are_same(self, factors: tuple[Tensor, ...]) -> bool:
        versions = tuple(factor._version for factor in factors)
        return versions == self._versions and all(
            now.data_ptr() == then.data_ptr() and now.dtype == then.dtype
            for now, then in zip(factors, self._factors, strict=True)
        )

    def __deepcopy__(self, memo: object) -> KeptProduct:
        return KeptProduct()


def can_be_kept(factors: tuple[Tensor, ...]) -> bool:
    """Tell whether changes of these tensors can be seen, so that their product may be kept.

    Not while gradients are wanted, while torch traces or compiles, for tensors of inference mode
    (they count no changes), on the meta device, or for subclasses such as shards.

    Example:
        >>> can_be_kept((torch.ones(1),)), can_be_kept((torch.ones(1, requires_grad=True),))
        (True, False)
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    wanted = torch.is_grad_enabled() and any(factor.requires_grad for factor in factors)
    return not wanted and all(map(_counts_changes, factors))


def _counts_changes(factor: Tensor) -> bool:
    plain = type(factor) in (Tensor, torch.nn.Parameter) and not factor.is_meta
    # Within torch.func a tensor has no address of its own.
    return (
        plain
        and not factor.is_inference()
        and not torch._C._functorch.is_functorch_wrapped_tensor(factor)
    )
