"""`load`: a model, its transform and its class names in one call, from the Hub or a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torchvision.transforms import Compose

from .architecture import PREFIX
from .checkpoint import CONFIG, read_config, slim_folder
from .download import fetch
from .errors import CheckpointError, HubError

_HUB, _LOCAL = "hf-hub:", "local-dir:"
_REPO = re.compile(r"[\w.-]+/[\w.-]+(@.+)?")


class Loaded(NamedTuple):
    """What `load` gives.

    Attributes:
        model: In eval mode.
        transform: Makes of a PIL image what the model takes.
        class_names: Names of the classes, in order; None where they are not known.
    """

    model: nn.Module
    transform: Callable[..., Any]
    class_names: tuple[str, ...] | None


def load(
    name: str | Path,
    *,
    token: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    **create_kwargs: Any,
) -> Loaded:
    """Load a model that was pushed or saved, with all that it takes to use it.

    Args:
        name: ``hf-hub:user/repo[@revision]`` or ``user/repo``; ``local-dir:FOLDER`` or a folder: a
            slim one, or one of a run. Where both are meant by a name, it is the folder.
        token: A token that may read the repo; None takes the one that is logged in, or HF_TOKEN.
        revision: A branch, tag or commit, as behind the ``@``.
        device: Where to put the model; None leaves it on the CPU.
        **create_kwargs: For ``timm.create_model``: ``num_classes``, ``features_only``, ``rate``...

    Returns:
        The model in eval mode, its transform for evaluation, and its class names.

    Raises:
        HubError: If the Hub does not hand it out.
        CheckpointError: If it is no model of timm_linop, or a file is damaged.

    Example:
        >>> import tempfile, timm_linop
        >>> from PIL import Image
        >>> slim = timm.create_model("test_resnet", num_classes=2)
        >>> folder = timm_linop.save(slim, f"{tempfile.mkdtemp()}/slim", class_names=["cat", "dog"])
        >>> model, transform, class_names = load(folder)
        >>> image = Image.new("RGB", (300, 200))
        >>> class_names[model(transform(image)[None]).argmax()] in ("cat", "dog")
        True
    """
    folder = _folder_of(str(name), revision, token)
    config = read_config(folder / CONFIG)
    if not str(config.get("architecture", "")).startswith(PREFIX):
        raise CheckpointError(
            f"{name} is no model of timm_linop ({folder / CONFIG} names the architecture "
            f"{str(config.get('architecture'))[:80]!r}); load a model of timm's own with "
            "timm.create_model, or check the name."
        )
    model = timm.create_model(f"{_LOCAL}{folder}", pretrained=True, **create_kwargs).eval()
    data_config = resolve_model_data_config(model)
    channels = _AsChannels(data_config["input_size"][0])
    transform = Compose([channels, create_transform(**data_config)])
    names = _class_names(config["pretrained_cfg"].get("label_names"), folder / CONFIG)
    if names is not None and len(names) != getattr(model, "num_classes", len(names)):
        names = None  # of other classes than the model was asked for
    return Loaded(model.to(device) if device is not None else model, transform, names)


class _AsChannels:
    """Give a PIL image the channels that the model reads."""

    def __init__(self, channels: int) -> None:
        self.mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)

    def __call__(self, image: Any) -> Any:
        return image if self.mode in (None, image.mode) else image.convert(self.mode)


def _folder_of(name: str, revision: str | None, token: str | None) -> Path:
    """Find the folder that a name means; a repo's is in the Hub client's cache."""
    path = Path(name.removeprefix(_LOCAL))
    if name.startswith(_LOCAL) or (not name.startswith(_HUB) and path.is_dir()):
        if revision is not None:
            raise CheckpointError(
                f"{path} is a folder and has no revision {revision!r}; leave revision= out, or "
                f"write {_HUB}{name} for the repo."
            )
        return slim_folder(path)
    repo = name.removeprefix(_HUB)
    if repo == name and not _REPO.fullmatch(name):
        raise CheckpointError(
            f"{name[:200]} is no folder, and no id of a repo (user/repo); check the path."
        )
    if revision is not None and "@" in repo:
        raise HubError(f"{name} names a revision, and revision={revision!r} too; leave one out.")
    try:
        return fetch(f"{repo}@{revision}" if revision is not None else repo, token=token)
    except HubError as error:
        if repo != name:
            raise
        raise HubError(f"there is no folder {name}, and {error}") from None


def _class_names(told: Any, path: Path) -> tuple[str, ...] | None:
    if told is None:
        return None
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        raise CheckpointError(f"{path}: label_names is no list of names; save the model again.")
    return tuple(told)
