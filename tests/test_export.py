"""Exports give the model's logits, in a process that knows nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import timm_linop
from timm_linop import cli, export
from timm_linop.errors import CheckpointError, RecipeError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dense = timm.create_model("test_efficientnet", num_classes=3)
    return timm_linop.save(timm_linop.prune(dense, ratio=0.5), tmp_path / "run" / "slim")


def test_onnx_and_pt2_give_the_models_logits(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    cli.main(["export", str(folder.parent)])
    model, _, _ = timm_linop.load(folder)
    for batch in (1, 5):
        images = torch.randn(batch, *timm.data.resolve_model_data_config(model)["input_size"])
        with torch.no_grad():
            expected = model(images)
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        (onnx,) = session.run(["logits"], {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(onnx), expected, rtol=1e-3, atol=1e-4)
        pt2 = torch.export.load(folder / "model.pt2").module()(images)
        assert torch.allclose(pt2, expected, rtol=1e-3, atol=1e-4)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_export_that_is_another_model_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = lambda model, images, path: path.touch() or (lambda x: torch.zeros(len(x), 3))  # noqa: E731
    monkeypatch.setitem(export._FORMATS, "pt2", (wrong, ()))
    with pytest.raises(CheckpointError, match=r"model\.pt2 gives logits that differ by 1"):
        export.export(folder, ["pt2"])
    names = {path.name for path in folder.iterdir()}
    assert not {"model.pt2", ".model.pt2"} & names


def test_what_cannot_be_exported_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"format='onx': use onnx or pt2\. Close names: 'onnx'"):
        export.export(folder, ["onx"])
    monkeypatch.setitem(export._FORMATS, "onnx", (export._as_onnx, ("no_such_package",)))
    with pytest.raises(RecipeError, match=r"needs no_such_package; pip install"):
        export.export(folder)
    assert not (folder / "model.pt2").exists()
