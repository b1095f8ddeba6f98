"""A card on its way to the Hub: where it lies there, its licence, and what its owner wrote."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, ModelCard

from timm_linop.card import free_text
from timm_linop.errors import HubError
from timm_linop.hub.client import status_of
from timm_linop.markdown import code

# A licence that is none of the Hub's own list has a name and an address beside.
_LICENCE_KEYS = ("license", "license_name", "license_link")
Licence = Mapping[str, Any]


def parsed(card: str, where: str) -> ModelCard:
    r"""Read a card with its metadata.

    Args:
        card: The whole Markdown.
        where: What it is called in the message.

    Raises:
        HubError: If its metadata is no YAML, or no mapping.

    Example:
        >>> parsed("---\nlicense: mit\n---\n", "README.md").data.license
        'mit'
    """
    problem = None
    try:
        return ModelCard(card)
    except Exception as error:  # yaml's own, and what a wrong value makes of huggingface_hub
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise HubError(f"{where}: the metadata above the card cannot be read ({problem}); mend it.")


def find_licence(
    api: HfApi, base: str | list[str] | None, asked: str | None, own: Licence | None = None
) -> tuple[Licence, str | None]:
    """Find out under which licence a model may be shared, or ask.

    The dense teacher's own card goes first, then what the user says, then what stood there before.

    Args:
        api: Reads the teacher's card.
        base: The teacher's Hub id, where the card names one.
        asked: What the user says, an identifier of the Hub's.
        own: What this model's card said before.

    Returns:
        ``license``, and ``license_name`` and ``license_link`` where there are such; empty, with a
        warning, if nobody knows: none is assumed. And the teacher's id, if its card told.

    Example:
        >>> find_licence(HfApi(), None, "mit")
        ({'license': 'mit'}, None)
    """
    base = base[0] if isinstance(base, list) and base else base
    of_base = _licence_of(api, base) if isinstance(base, str) else {}
    own = {key: value for key, value in (own or {}).items() if value}
    if of_base:
        said = asked or own.get("license")
        if said and said != of_base["license"]:
            warnings.warn(
                f"the licence is {of_base['license']}, as the card of {base} has it, and not "
                f"{said}.",
                stacklevel=3,
            )
        return of_base, str(base)
    if not asked and not own.get("license"):
        warnings.warn(
            "the model's licence is not known, so its card names none and asks readers to ask you: "
            "say it with --license (license= in Python; hub_license in a recipe).",
            stacklevel=3,
        )
    return ({"license": asked} if asked else own), None


def licence_in(data: Any) -> Licence:
    r"""Read the licence out of a card's metadata.

    Example:
        >>> licence_in(parsed("---\nlicense: mit\n---\n", "README.md").data)
        {'license': 'mit'}
    """
    found = {key: getattr(data, key, None) for key in _LICENCE_KEYS}
    return {key: value for key, value in found.items() if value}


def _licence_of(api: HfApi, base: str) -> Licence:
    try:
        return licence_in(api.model_info(base.split("@")[0]).card_data)
    except Exception as error:
        if status_of(error) in (401, 403, 404):  # a teacher that we may not read tells no licence
            return {}
        raise


def finished(card: str, name: str, licence: Licence, base: str | None = None) -> str:
    r"""Write into a card where it will lie, and its licence; all else stays byte for byte.

    Args:
        card: The card in the slim folder.
        name: Where it is pushed to, ``user/repo`` or ``user/repo@branch``.
        licence: As `find_licence` gives it.
        base: The teacher's Hub id, where the licence comes from its card.

    Example:
        >>> card = "---\ntags: [a]\n---\n## Licence\n\nAsk.\n"
        >>> print(finished(card, "me/x", {"license": "mit"}))
        ---
        tags:
        - a
        license: mit
        ---
        ## Licence
        <BLANKLINE>
        `mit`. The licence of the data it learnt from may ask for more.
        <BLANKLINE>
    """
    card = _placed(card, name)
    whole = parsed(card, "README.md")
    if not licence or licence_in(whole.data) == licence:
        return card
    for key in _LICENCE_KEYS:
        setattr(whole.data, key, licence.get(key))
    told = code(licence.get("license_name") or licence["license"])
    whence = f", as the card of {code(base)} has it" if base else ""
    words = f"{told}{whence}. The licence of the data it learnt from may ask for more."
    whole.text = _LICENCE.sub(lambda found: f"{found[1]}{words}\n", whole.text, count=1)
    return str(whole)


def _placed(card: str, name: str) -> str:
    """Let the snippets load the model from where it will lie.

    The first model that a snippet names is this one; others, as its teacher, are left as they are.
    """
    snippets = [found[0] for found in _SNIPPET.finditer(card)]
    own = _NAME.search("\n".join(snippets))
    if own is None:
        return card
    for snippet in snippets:
        moved = snippet.replace(own[0], f"{own[1]}hf-hub:{name}{own[1]}")
        card = card.replace(snippet, moved)
    return card


_SNIPPET = re.compile(r"^```python\n.*?^```$", re.M | re.S)
_NAME = re.compile(r"([\"'])(?:local-dir|hf-hub):[^\"'\n]*\1")
_LICENCE = re.compile(r"(^## Licence\n\n)(?:(?!^## ).*\n?)+?(?=\n*^## |\Z)", re.M)


def with_free_text(card: str, there: str) -> str:
    r"""Keep what the owner wrote into the marked sections of the card on the Hub.

    Args:
        card: The new card.
        there: The card on the Hub.

    Returns:
        The new card with the owner's words; a section that it has no longer comes last.

    Example:
        >>> empty = "<!-- free: notes -->\n<!-- /free: notes -->\n"
        >>> print(with_free_text(empty, empty.replace("\n<", "\nMine.\n<")).strip())
        <!-- free: notes -->
        Mine.
        <!-- /free: notes -->
    """
    for section, words in free_text(there).items():
        start, end = f"<!-- free: {section} -->\n", f"<!-- /free: {section} -->"
        filled = f"{start}{words}\n{end}" if words else f"{start}{end}"
        marked = re.compile(rf"^{re.escape(start)}.*?^{re.escape(end)}$", re.M | re.S)
        if marked.search(card):
            card = filled.join(marked.split(card, maxsplit=1))
        elif words:
            card = f"{card.rstrip()}\n\n{filled}\n"
    return card


def with_exports(card: str, names: list[str]) -> str:
    r"""Tell in a card which exports lie beside it, marked so that a later push knows its own.

    Example:
        >>> exports_in(with_exports("# Card\n", ["model.onnx"]))
        {'model.onnx'}
    """
    if not names:
        return card
    told = f"For other runtimes, the same model: {', '.join(map(code, names))}."
    return f"{card.rstrip()}\n\n{told}\n<!-- exports: {' '.join(names)} -->\n"


def exports_in(card: str) -> set[str]:
    """Read what `with_exports` has noted.

    Example:
        >>> exports_in("# Card")
        set()
    """
    noted = re.findall(r"^<!-- exports: (.*) -->$", card, re.M)
    return {name for line in noted for name in line.split()}
