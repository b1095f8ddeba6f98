"""What timm's scripts are made of, on a slim folder: validate, train, distil, resume, ONNX.

The scripts themselves are in timm's repository only, in neither of its packages.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_dataset, create_loader, resolve_input_data_config
from timm.models import resolve_model_input_args, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from timm.utils import CheckpointSaver, ModelEmaV3, accuracy
from timm.utils.onnx import onnx_export
from torch import Tensor

from tests.slims import CLASSES, images, lively, slim, write_folder
from timm_linop.expand import contract, is_expanded

NAME = "test_resnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"local-dir:{write_folder(slim(NAME), tmp_path_factory.mktemp('slim'))}"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder: four images of each of the first digits."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits(n_class=CLASSES)
    for label in range(CLASSES):
        (root / str(label)).mkdir()
        for i, image in enumerate(data.images[data.target == label][:4]):
            pixels = (image * 255 / 16).astype("uint8")
            Image.fromarray(pixels).resize((64, 64)).save(root / str(label) / f"{i}.png")
    return root


def batches(model: Any, root: Path) -> Any:
    config = resolve_input_data_config(model, {"img_size": 64})
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct")
    settings = {key: config[key] for key in keys}
    dataset = create_dataset(name="", root=str(root), split="validation", input_img_mode="RGB")
    return create_loader(dataset, batch_size=10, use_prefetcher=False, num_workers=0, **settings)


@pytest.mark.parametrize("args", [{}, {"rate": 2}], ids=["slim", "expanded"])
def test_validate(folder: str, digits: Path, args: dict[str, Any]) -> None:
    """As validate.py builds a model and reads a folder of images."""
    request = resolve_model_input_args(folder, {"img_size": 64}, pretrained=True, **args)
    model = timm.create_model(**request).eval()
    assert is_expanded(model) == bool(args)
    with torch.no_grad():
        read = [(model(x), slim(NAME)(x), target) for x, target in batches(model, digits)]
    logits, expected, targets = (torch.cat(parts) for parts in zip(*read, strict=True))
    assert len(targets) == 4 * CLASSES
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert accuracy(logits, targets, topk=(1, 2)) == accuracy(expected, targets, topk=(1, 2))


@pytest.mark.parametrize("kind", ["classification", "logits", "features"])
def test_a_training_step(folder: str, kind: str) -> None:
    """As train.py takes one, with the dense model as a teacher or without."""
    student = timm.create_model(folder, pretrained=True, rate=2).train()
    task: Any
    if kind == "classification":
        task = ClassificationTask(student, criterion_kwargs={"smoothing": 0.1}, verbose=False)
    else:
        distil = LogitDistillationTask if kind == "logits" else FeatureDistillationTask
        task = distil(student, lively(NAME), verbose=False)
    optimizer = create_optimizer_v2(task.trainable_module, opt="sgd", lr=0.1, layer_decay=0.5)
    before = [p.detach().clone() for p in student.parameters()]
    result = task(images(NAME, batch=4), torch.arange(4))
    result["loss"].backward()
    optimizer.step()
    assert torch.isfinite(result["loss"])
    pairs = zip(before, student.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)
    contract(student)
    assert student.state_dict().keys() == slim(NAME).state_dict().keys()


def test_checkpoints_of_an_expanded_model_resume(folder: str, tmp_path: Path) -> None:
    """As train.py saves with an EMA and takes up again under --resume."""
    model = timm.create_model(folder, pretrained=True, rate=2)
    optimizer = create_optimizer_v2(model, opt="momentum", lr=0.1)
    ema = ModelEmaV3(model, decay=0.5)
    model(images(NAME)).square().sum().backward()
    optimizer.step()
    ema.update(model)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(3, metric=0.5)
    other = timm.create_model(folder, pretrained=True, rate=2)
    resumed = create_optimizer_v2(other, opt="momentum", lr=0.1)
    epoch = resume_checkpoint(other, str(tmp_path / "last.pth.tar"), resumed, log_info=False)
    assert epoch == 4
    x = images(NAME)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert len(resumed.state) == len(optimizer.state) > 0
    averaged: Tensor = copy.deepcopy(ema.module).eval()(x)
    assert not torch.equal(averaged, model(x))


@pytest.mark.parametrize("rate", [0, 2], ids=["slim", "expanded"])
def test_onnx(folder: str, rate: float, tmp_path: Path) -> None:
    """As onnx_export.py: of an expanded model the graph holds the slim product's own layers."""
    onnx = pytest.importorskip("onnx")
    model = timm.create_model(folder, pretrained=True, exportable=True, rate=rate).eval()
    if rate:
        contract(model)
    onnx_export(model, str(tmp_path / "slim.onnx"), input_size=(3, 64, 64), batch_size=1)
    graph = onnx.load(tmp_path / "slim.onnx").graph
    kernels = {tuple(t.dims) for t in graph.initializer if len(t.dims) == 4}
    expected = {tuple(p.shape) for p in slim(NAME).parameters() if p.ndim == 4}
    assert kernels == expected
