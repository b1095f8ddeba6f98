"""The loading snippet of a card, run as a reader would: what a card shows must work."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from .data import Augmentation, make_transforms
from .errors import CheckpointError
from .markdown import public

# What two runs of one model on one image may differ by, as probabilities.
_AGREEMENT = 1e-4


def snippet_of(card: str) -> str:
    r"""Cut the loading snippet out of a card.

    Args:
        card: Its Markdown.

    Raises:
        CheckpointError: There is none.

    Example:
        >>> snippet_of("# A card\n\n```python\nimport timm\n```\n")
        'import timm\n'
    """
    found = re.search(r"^```python\n(.*?)^```$", card, re.M | re.S)
    if found is None:
        raise CheckpointError("the card has no loading snippet; keep its block ```python.")
    return found[1]


def check_snippet(
    folder: Path, model: nn.Module, config: Mapping[str, Any], class_names: Sequence[str]
) -> None:
    """Run the snippet of a saved folder's card, and hold its answer against the model's own.

    Args:
        folder: The slim folder, with its README.md. The snippet loads it even where it names a
            repo on the Hub, which may not be there yet.
        model: What was saved there; it is left as it is.
        config: Input size, mean and std that the model was evaluated with.
        class_names: In the order of the labels.

    Raises:
        CheckpointError: The snippet fails, or answers something else than the model.

    Example:
        >>> import timm, timm_linop
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> folder = timm_linop.save(model, Path(tempfile.mkdtemp()) / "slim")
        >>> config = timm.data.resolve_model_data_config(model)
        >>> check_snippet(folder, model, config, ["owl", "cat"])
    """
    _, transform = make_transforms(dict(config), augment=Augmentation(no_aug=True))
    image = _noise(config["input_size"])
    with torch.inference_mode():
        own = copy.deepcopy(model).cpu().eval()(transform(image).unsqueeze(0))
    expected = own.float().softmax(dim=1)[0]
    found, printed = _run(folder, image)
    got = found.get("probabilities")
    if not isinstance(got, Tensor) or not torch.allclose(got, expected, atol=_AGREEMENT):
        raise _fails(folder, "it answers something else than the model that was saved")
    names = found.get("classes", [str(place) for place in range(len(expected))])
    best = int(got.argmax())
    if not printed.startswith(str(names[best])):
        raise _fails(folder, f"it printed {printed[:80]!r} for class {names[best]!r}")
    if "classes" in found and [*map(public, names)] != [*map(public, class_names)]:
        raise _fails(folder, "its classes are not those the model was trained on")


def _noise(input_size: Sequence[int]) -> PIL.Image.Image:
    """Draw an image that the transform has to resize and to crop."""
    channels, height, width = input_size
    size = (height + 13, width + 7, channels)
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    return PIL.Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def _run(folder: Path, image: PIL.Image.Image) -> tuple[dict[str, Any], str]:
    """Run the snippet on that folder and that image; give its variables and what it printed."""
    code = snippet_of((folder / "README.md").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image.png"
        image.save(path)
        places = {"timm.create_model": f"local-dir:{folder.resolve()}", "Image.open": str(path)}
        try:
            tree = ast.parse(code)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in places:
                    node.args[0] = ast.Constant(places[ast.unparse(node.func)])
            program = compile(ast.fix_missing_locations(tree), f"<card of {folder}>", "exec")
            with contextlib.redirect_stdout(printed):
                exec(program, found)
        except Exception as error:  # whatever a reader would meet
            raise _fails(folder, f"{type(error).__name__}: {str(error)[:200]}") from error
    return found, printed.getvalue()


def _fails(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"the loading snippet of {folder}/README.md does not work ({why}); the folder is left for "
        "you to look at, do not push it before the snippet runs."
    )
