"""The real client in this process, pointed at the tests' Hub; and a slim folder to push."""

from __future__ import annotations

import functools
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub import CommitOperationAdd, HfApi

import timm_linop
from tests.hub_server import HubServer
from timm_linop.card import CardData
from timm_linop.hub import save

REPO = "alice/slim"
TEACHER = "alice/dense"


def use_hub(hub: HubServer, token: str | None, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """What HF_ENDPOINT, HF_TOKEN & co. do when they are set before the client is imported."""
    constants = huggingface_hub.constants
    page = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": page,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    if token is None:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


def publish(hub: HubServer, repo: str, folder: Path, *, private: bool = False) -> str:
    """Put a folder's files into a repo as one commit; returns its hash."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token(repo.split("/")[0], write=True))
    api.create_repo(repo, private=private, exist_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    added = [CommitOperationAdd(str(path.relative_to(folder)), path) for path in files]
    with pytest.MonkeyPatch.context() as patch:  # also for fixtures of a whole module
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        return api.create_commit(repo, added, commit_message="Push").oid


def cached(home: Path, name: str) -> Path:
    """The one file of that name in the cache."""
    (path,) = (home / "hub").glob(f"models--*/snapshots/*/{name}")
    return path


@functools.cache
def _slim(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    dense = timm.create_model("test_resnet", num_classes=3)
    return timm_linop.prune(dense, torch.randn(1, 3, 64, 64), ratio=0.5).eval()


def slim_folder(
    folder: Path, seed: int = 0, card: CardData | None = None, **figures: bytes
) -> Path:
    """Save a small pruned model; ``figures`` are files by stem."""
    drawn = [folder.parent / f"{stem}.png" for stem in figures]
    for path, content in zip(drawn, figures.values(), strict=True):
        path.write_bytes(content)
    return save(_slim(seed), folder, class_names=["a", "b", "c"], card=card, figures=drawn)
