"""What every test starts from: checked shapes, the same examples, fixed seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.hub_server import HubServer

# Annotated shapes are checked where tensors carry the meaning. In place before timm_linop is
# imported; an int passes for a float, as for any type checker. (The pytest option of jaxtyping
# cannot pass that setting on to beartype together with more than one module.)
install_import_hook(
    [f"timm_linop.{module}" for module in ("chain", "initialise", "distill", "gram")],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# The same examples in every run, and no clock: the machines that run this are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# Tensors here are small: a second thread would only wait, most of all where cores are shared, as
# they are by the workers of pytest-xdist. Processes that tests start take it over.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """The tests' own Hub."""
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def token(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Logged in as alice, who may write, with the client of this process pointed at that Hub."""
    from tests.hub_client import use_hub  # which imports timm_linop, after the hook above

    token = hub.token("alice", write=True)
    use_hub(hub, token, monkeypatch, tmp_path / "home")
    return token
