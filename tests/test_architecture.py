"""What timm can tell of an architecture: whose name a name is."""

from __future__ import annotations

import pytest
import timm

import timm_linop  # noqa: F401 - registers linop_*
from timm_linop.architecture import ALIASES, PREFIX, base_of, known_architecture
from timm_linop.errors import UnknownModelError


@pytest.mark.parametrize(
    "name", ["test_resnet", "linop_test_resnet", "linop_test_resnet.r160_in1k"]
)
def test_a_name_is_known_with_and_without_prefix_and_tag(name: str) -> None:
    assert known_architecture(name) == "test_resnet"


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_architecture_that_timm_builds_by_it(alias: str) -> None:
    built = timm.create_model(alias, rate=0, num_classes=2)
    assert known_architecture(alias) == known_architecture(f"{alias}.tag") == base_of(built)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_none_without_its_prefix(alias: str) -> None:
    with pytest.raises(UnknownModelError, match=f"'{alias.removeprefix(PREFIX)}' is no architect"):
        known_architecture(alias.removeprefix(PREFIX))
