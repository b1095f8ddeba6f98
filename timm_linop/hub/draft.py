"""Where a push goes, what is to lie there, and how that differs from what lies there now."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.utils.sha import git_hash

from timm_linop.hub.folder import EXPORTS
from timm_linop.hub.readme import exports_in, with_exports, with_free_text
from timm_linop.hub.saving import CARD, FIGURES

MAIN = constants.DEFAULT_REVISION
Content = Path | bytes


@dataclass(frozen=True)
class Target:
    """Where a push goes; the fields are those of `push`."""

    api: HfApi
    repo_id: str
    private: bool
    revision: str
    create_pr: bool
    tag: str | None
    message: str

    @property
    def name(self) -> str:
        """As timm's ``hf-hub:`` takes it."""
        return self.repo_id if self.revision == MAIN else f"{self.repo_id}@{self.revision}"

    def head(self) -> Any:
        """Read what lies there now, with the hash of each file."""
        return self.api.model_info(self.repo_id, revision=self.revision, files_metadata=True)

    def tags(self) -> dict[str, str]:
        """Tags and the commits that they name."""
        return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(self.repo_id).tags}


@dataclass(frozen=True)
class Draft:
    """What is to lie there; the card as it would be if nobody had touched the one there."""

    files: Mapping[str, Path]
    card: str

    def onto(self, target: Target, head: Any) -> Change:
        """Work out what changes the head into this, without the owner's words getting lost."""
        there = _card_at(target, head)
        exports = [name for name in EXPORTS if name in self.files]
        card = with_exports(with_free_text(self.card, there), exports)
        contents: dict[str, Content] = {**self.files, CARD: card.encode()}
        siblings = {each.rfilename: each for each in (head.siblings or [] if head else [])}
        ours = exports_in(there) & set(EXPORTS)
        stale = {name for name in siblings if _is_figure(name) or name in ours} - set(contents)
        changed = {n for n, c in contents.items() if not _is_same(c, siblings.get(n))}
        return Change(contents, changed, sorted(stale))


@dataclass(frozen=True)
class Change:
    """Files to be there, those of them that are not there as they are, and those to remove."""

    contents: Mapping[str, Content]
    changed: set[str]
    stale: list[str]

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.changed or self.stale)


def _card_at(target: Target, head: Any) -> str:
    """The card that lies there; empty if there is none."""
    if not head or CARD not in {sibling.rfilename for sibling in head.siblings or []}:
        return ""
    path = target.api.hf_hub_download(target.repo_id, CARD, revision=head.sha)
    # Read with any line ends: who edits on the Hub's page may leave others than ours.
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _is_figure(name: str) -> bool:
    return re.fullmatch(rf"{FIGURES}/[^/]+\.png", name) is not None


def _is_same(content: Content, there: Any) -> bool:
    """Whether a file on the Hub is this one, by its hash."""
    if there is None:
        return False
    data = content.read_bytes() if isinstance(content, Path) else content
    if there.lfs is not None:
        return bool(there.lfs.sha256 == hashlib.sha256(data).hexdigest())
    return bool(there.blob_id == git_hash(data))


def size_of(content: Content) -> int:
    """Size in bytes.

    Example:
        >>> size_of(b"abc")
        3
    """
    return content.stat().st_size if isinstance(content, Path) else len(content)
