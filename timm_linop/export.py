"""A slim model for other runtimes: ONNX, and torch.export; each held against the model itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from .checkpoint import slim_folder
from .errors import CheckpointError, RecipeError, close_names
from .loading import load

_TOLERANCE = 1e-4  # of the logits, relative to their norm: other kernels, another order of sums


def export(folder: str | Path, formats: Sequence[str] = ("onnx", "pt2")) -> list[Path]:
    """Write a slim folder's model as model.onnx, model.pt2 or both, beside its weights.

    Both take batches of any size, of images as the model's transform makes them. A push takes them
    along.

    Args:
        folder: A slim folder, or one of a run.
        formats: ``onnx`` (needs onnx and onnxruntime), ``pt2`` (torch.export).

    Returns:
        The files written.

    Raises:
        RecipeError: If a format is unknown, or a package that it needs is not there.
        CheckpointError: If the folder holds no model of ours, or an export gives other logits.

    Example:
        >>> import tempfile, timm, timm_linop
        >>> slim = timm.create_model("test_resnet", num_classes=2)
        >>> folder = timm_linop.save(slim, f"{tempfile.mkdtemp()}/slim")
        >>> [path.name for path in export(folder, ["pt2"])]
        ['model.pt2']
    """
    for name in formats:
        if name not in _FORMATS:
            raise RecipeError(
                f"format={name!r}: use {' or '.join(_FORMATS)}." + close_names(name, _FORMATS)
            )
        _check_installed(*_FORMATS[name][1])
    folder = slim_folder(Path(folder))
    model = load(folder).model
    return [_write(model, folder / f"model.{name}", _FORMATS[name][0]) for name in formats]


def _write(model: nn.Module, path: Path, form: Callable[[nn.Module, Tensor, Path], Any]) -> Path:
    """Export into a draft, and give it its name once it gives the model's logits."""
    draft = path.with_name(f".{path.name}")
    size = resolve_model_data_config(model)["input_size"]
    try:
        run = form(model, torch.randn(2, *size), draft)
        images = torch.randn(3, *size)  # another batch than the one it was traced with
        with torch.no_grad():
            expected, got = model(images), run(images)
        off = ((got - expected).norm() / expected.norm()).item()
        if not off <= _TOLERANCE:
            raise CheckpointError(
                f"{path.name} gives logits that differ by {off:.2g} relative, over {_TOLERANCE:g}; "
                "it is not kept."
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _as_pt2(model: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _as_onnx(model: nn.Module, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    from timm.utils.onnx import onnx_export

    onnx_export(model, str(path), images, input_names=["images"], output_names=["logits"])
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _check_installed(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RecipeError(
                f"an export to ONNX needs {package}; pip install 'timm-linop[export]'."
            ) from error


_FORMATS: dict[str, tuple[Callable[[nn.Module, Tensor, Path], Any], tuple[str, ...]]] = {
    "onnx": (_as_onnx, ("onnx", "onnxruntime")),
    "pt2": (_as_pt2, ()),
}
