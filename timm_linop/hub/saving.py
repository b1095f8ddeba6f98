"""Write a slim model as a folder in timm's own layout."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from timm_linop.architecture import PREFIX, forget_caches, model_args_of
from timm_linop.card import CardData, render
from timm_linop.divergence import broken_parameter
from timm_linop.drafts import draft_of
from timm_linop.errors import CheckpointError, ExpansionError, OutputFolderError
from timm_linop.expand import is_expanded
from timm_linop.proof import prove
from timm_linop.structure import Structure

CARD, FIGURES = "README.md", "figures"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    card: CardData | None = None,
    figures: Sequence[Path] = (),
) -> Path:
    """Write a slim model as a folder that timm loads by name.

    The folder holds config.json (architecture ``linop_<base>``, the structure, ``rate: 0``),
    model.safetensors, README.md and figures/. It appears whole or not at all.

    Args:
        model: A slim (or dense) timm model, contracted.
        folder: Where to; new or empty.
        class_names: Names of the classes, in order.
        data_config: Image size, mean and std it was trained with, as timm's transforms take them;
            None takes the model's own.
        card: What the card tells; None tells what the model itself does.
        figures: PNG files to put beside it.

    Returns:
        The folder.

    Raises:
        ExpansionError: If the model is expanded.
        OutputFolderError: If the folder holds something already, or another process was faster.
        WriteError: If the disk is full, or does not let it be written.
        StructureError: If the model is no slim form of its timm architecture.
        CheckpointError: If a weight is NaN or infinite.

    Example:
        >>> import timm, tempfile
        >>> slim = timm.create_model("test_resnet", num_classes=3)
        >>> folder = save(slim, Path(tempfile.mkdtemp()) / "slim", class_names=["a", "b", "c"])
        >>> timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes
        3
    """
    folder = Path(folder)
    _refuse_expanded(model)
    _refuse_broken(model)
    check_output(folder)
    structure = Structure.of(forget_caches(model))
    slim: Any = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    slim.pretrained_cfg = {**slim.pretrained_cfg, "architecture": PREFIX + structure.base}
    slim._model_args = model_args_of(model)
    _forget_autocast(slim)
    slim.register_state_dict_post_hook(_each_tensor_for_itself)
    with draft_of(folder) as draft:
        save_for_hf(
            slim,
            str(draft),
            model_config={"label_names": list(class_names)} if class_names else None,
            model_args={"pruned": structure.to_dict(), "rate": 0, **prove(slim)},
            safe_serialization=True,
            data_config=data_config,
        )
        card = card or CardData(
            folder.name, structure.base, "pruned" if structure.shapes else "dense"
        )
        (draft / CARD).write_text(render(card), encoding="utf-8")
        for figure in figures:
            (draft / FIGURES).mkdir(exist_ok=True)
            shutil.copy(figure, draft / FIGURES / figure.name)
    return folder


def _forget_autocast(model: nn.Module) -> None:
    """Undo what accelerate does to a model under mixed precision, of which a reload knows nothing.

    It puts a forward of its own, in half precision, over the model's.
    """
    if "_original_forward" in model.__dict__:
        del model.__dict__["_original_forward"]
        model.__dict__.pop("forward", None)


def _each_tensor_for_itself(
    _module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: Any
) -> None:
    """Copy what stands under two names in a state dict, which safetensors would refuse."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.data_ptr())


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something already.

    Args:
        folder: New or empty.

    Raises:
        OutputFolderError: If it is neither, or a file.

    Example:
        >>> check_output(Path("/nowhere/yet"))
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise OutputFolderError(
            f"{folder} holds something already and is left as it is; name a new folder (on the "
            "command line --output), or remove it."
        )


def _refuse_broken(model: nn.Module) -> None:
    broken = broken_parameter(model)
    if broken is not None:
        raise CheckpointError(
            f"{broken!r} holds numbers that are not finite, so the model is not saved; go back to "
            "a checkpoint from before it diverged."
        )


def _refuse_expanded(model: nn.Module) -> None:
    if is_expanded(model):
        raise ExpansionError(
            "the model is expanded and is not saved: its chains are many times the slim layers' "
            "size; contract(model) first."
        )
