"""A slim folder before it is pushed: what belongs to it, and whether it is what it says."""

from __future__ import annotations

from pathlib import Path

import timm
import torch

from timm_linop.architecture import PREFIX
from timm_linop.divergence import broken_parameter
from timm_linop.errors import CheckpointError, ExpansionError, LinOPError
from timm_linop.hub.saving import CARD, FIGURES
from timm_linop.source import CONFIG, WEIGHTS, read_config, read_weights, slim_folder
from timm_linop.structure import Structure

# The same model for other runtimes, where somebody exported it into the folder.
EXPORTS = ("model.onnx", "model.pt2")


def verified(folder: Path) -> dict[str, Path]:
    """Load a slim folder as anyone would, and list the files that are the model.

    Args:
        folder: Holds config.json, model.safetensors and README.md, or slim/ that does.

    Returns:
        Path in the repo to file: those three, figures/*.png, and exports.

    Raises:
        ExpansionError: If the folder holds an expanded model.
        CheckpointError: If it holds no slim model of ours, one without a card or stored logits,
            or one that does not load, or does not say what it said when it was saved.

    Example:
        >>> verified(Path("/nowhere"))
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: /nowhere holds no slim model (config.json ...
    """
    folder = slim_folder(folder)
    _check_config(folder)
    _check_reload(folder)
    if not (folder / CARD).is_file():
        raise CheckpointError(f"{folder} holds no {CARD}; save the model again.")
    names = [name for name in (CONFIG, WEIGHTS, CARD, *EXPORTS) if (folder / name).is_file()]
    figures = sorted((folder / FIGURES).glob("*.png"))
    return {name: folder / name for name in names} | {
        figure.relative_to(folder).as_posix(): figure for figure in figures
    }


def _check_config(folder: Path) -> None:
    """Tell plainly what a folder is that `save` has not written."""
    config, weights = read_config(folder / CONFIG), read_weights(folder / WEIGHTS)
    if any(".parametrizations." in name for name in weights):
        raise ExpansionError(
            f"{folder} holds an expanded model and is not pushed: contract(model) and save again."
        )
    args = config.get("model_args")
    args = args if isinstance(args, dict) else {}
    structure = args.get("pruned")
    if not str(config.get("architecture")).startswith(PREFIX) or structure is None:
        raise CheckpointError(
            f"{folder} holds no slim model of timm_linop (architecture "
            f"{config.get('architecture')!r}); write it with timm_linop.save()."
        )
    Structure.from_dict(structure)
    if args.get("probe") is None:
        raise CheckpointError(
            f"{folder}/{CONFIG} holds no logits to hold the model against, so nobody could tell "
            "whether it reloads as it was; save it again with timm_linop.save()."
        )


def _check_reload(folder: Path) -> None:
    """Build the model by name; our loader checks structure, shapes and stored logits."""
    try:
        # timm draws weights before it loads them; who pushes while training wants no such thing.
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except LinOPError:
        raise
    except Exception as error:  # timm and torch raise many kinds
        raise CheckpointError(
            f"{folder} cannot be loaded ({type(error).__name__}: {str(error)[:200]}) and is not "
            "pushed; save the model again with timm_linop.save()."
        ) from error
    broken = broken_parameter(model)
    if broken is not None:
        raise CheckpointError(
            f"{folder}: {broken!r} holds numbers that are not finite, so it is not pushed; go "
            "back to a checkpoint from before it diverged."
        )
