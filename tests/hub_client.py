"""The real client in the tests' own process, pointed at the tests' Hub, with a cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants

from tests.hub_server import HubServer


def point_client_at(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the client read from the environment at its import; nobody is logged in."""
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def publish(hub: HubServer, repo: str, folder: Path, *, private: bool = False) -> str:
    """Put a folder's files into a repo as one commit; returns its hash."""
    api = HfApi(endpoint=hub.endpoint, token=hub.token(repo.split("/")[0], write=True))
    api.create_repo(repo, private=private, exist_ok=True)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    added = [CommitOperationAdd(str(path.relative_to(folder)), path) for path in files]
    with pytest.MonkeyPatch.context() as patch:  # also for fixtures of a whole module
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return api.create_commit(repo, added, commit_message="Push").oid


def cached(home: Path, name: str) -> Path:
    """The one file of that name in the cache."""
    (path,) = (home / "hub").glob(f"models--*/snapshots/*/{name}")
    return path
