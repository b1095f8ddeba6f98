"""The YAML head of a README.md: what the Hub shows of a model, and what it refuses.

YAML is the one thing here that the standard library lacks; the client itself depends on PyYAML.
"""

from __future__ import annotations

from typing import Any

import yaml

Card = dict[str, Any]


def read_card(readme: str) -> tuple[Card, list[str]]:
    """The metadata of a README and what is wrong with it.

    >>> read_card("---\\nlicense: mit\\n---\\nHello")
    ({'license': 'mit'}, [])
    >>> read_card("Hello")
    ({}, [])
    >>> read_card("---\\n- mit\\n---\\n")
    ({}, ['The metadata must be a mapping, not a list'])
    """
    lines = readme.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}, []
    ends = [i for i, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    if not ends:
        return {}, ["The metadata block is not closed by a line ---"]
    try:
        data = yaml.safe_load("\n".join(lines[1 : ends[0]]))
    except yaml.YAMLError as error:
        return {}, [f"The metadata is not YAML: {error}"]
    if data is None:
        return {}, []
    if not isinstance(data, dict):
        return {}, [f"The metadata must be a mapping, not a {type(data).__name__}"]
    return data, []


def tags_of(card: Card) -> list[str]:
    """The tags that the Hub derives from a card, its own first.

    >>> tags_of({"library_name": "timm", "tags": ["pruned"], "license": "mit"})
    ['timm', 'pruned', 'license:mit']
    """
    tags = [card["library_name"]] if "library_name" in card else []
    tags += _listed(card.get("tags"))
    for key, prefix in (("datasets", "dataset"), ("base_model", "base_model"), ("license",) * 2):
        tags += [f"{prefix}:{value}" for value in _listed(card.get(key))]
    return tags


def _listed(value: object) -> list[Any]:
    """A card's value as a list: absent, one, or several."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
