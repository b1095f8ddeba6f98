"""A card's metadata pass the check that the Hub makes of them before a push."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from hub_cards import make
from tests.hub_server import HubServer
from tests.test_card import FULL, THIN
from timm_linop.card import render


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        # The card asks the Hub that the client was imported with.
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server


@pytest.mark.parametrize("data", [FULL, *THIN], ids=lambda data: data.arm)
def test_the_hub_validates_a_card(data, hub: HubServer) -> None:
    ModelCard(render(data)).validate(repo_type="model")
    assert ("POST", "/api/validate-yaml", 200) in hub.requests


def test_the_hub_validates_the_published_cards(hub: HubServer) -> None:
    for _, text in make.cards():
        ModelCard(text).validate(repo_type="model")
    assert sum(call[1] == "/api/validate-yaml" for call in hub.requests) == len([*make.cards()])
