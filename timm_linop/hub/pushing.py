"""Push a slim folder to the Hub, or tell what that would do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi

from timm_linop.errors import HubError
from timm_linop.hub.client import check_repo_id, explained, is_out_of_reach, status_of
from timm_linop.hub.commit import add_tag, commit, make_branch
from timm_linop.hub.draft import MAIN, Draft, Target, size_of
from timm_linop.hub.folder import verified
from timm_linop.hub.readme import find_licence, finished, licence_in, parsed
from timm_linop.hub.saving import CARD

MESSAGE = "Upload slim model with timm_linop"


@dataclass(frozen=True)
class Shipment:
    """What a push would do; printed, the files with their sizes, and the card.

    Attributes:
        repo_id: Where to.
        revision: The branch.
        files: Size in bytes of each file that would be there, by path.
        changed: Those of them that are new there or different.
        removed: Files of an earlier push that would go.
        card: The card as it would be there.
        note: What could not be found out.
    """

    repo_id: str
    revision: str
    files: Mapping[str, int]
    changed: frozenset[str]
    removed: tuple[str, ...]
    card: str
    note: str = ""

    def __str__(self) -> str:
        """List the files, then the card."""
        told = [f"Nothing was pushed. To {self.repo_id}, {self.revision}, would go:"]
        for name, size in self.files.items():
            state = "" if name in self.changed else "  (there already)"
            told.append(f"{size:>14,}  {name}{state}")
        told += [f"{'removed':>14}  {name}" for name in self.removed]
        told += ["Access, visibility and tag were not tried.", *([self.note] if self.note else [])]
        return "\n".join([*told, "", self.card])


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    message: str = MESSAGE,
    token: str | None = None,
    dry_run: bool = False,
    license: str | None = None,
) -> CommitInfo | Shipment:
    """Push a slim folder as exactly one commit; pushing the same again changes nothing.

    The folder is loaded first, as anyone would load it, and held against its stored logits. Files
    of an earlier push that it has no longer are removed, files of others are kept, and so is what
    the owner wrote between the marks of the card on the Hub.

    Args:
        folder: A folder that `save` wrote, or a run folder that holds one in slim/.
        repo_id: ``user/repo``; created where it does not exist.
        private: Whether a new repo is private.
        revision: Branch to push to, created where it does not exist; None is the default branch.
        create_pr: Open a pull request instead.
        tag: A name for the commit, once it is there.
        message: The commit's title.
        token: A write token; None takes the one that is logged in.
        dry_run: Change nothing, and tell what would be pushed.
        license: The model's licence, as the Hub names it (``apache-2.0``), where no teacher's
            card tells it.

    Returns:
        What huggingface_hub tells of the commit; with ``dry_run`` a `Shipment`.

    Raises:
        ExpansionError: If the folder holds an expanded model.
        CheckpointError: If it holds no slim model of ours, or a damaged one.
        HubError: If the Hub refuses, a name is taken, or others keep pushing at the same moment.

    Example:
        >>> push("/nowhere", "me/slim")
        Traceback (most recent call last):
        ...
        timm_linop.errors.CheckpointError: /nowhere holds no slim model (config.json ...
    """
    check_repo_id(repo_id)
    if tag is not None and not re.fullmatch(r"[\w.][\w.-]*", tag):
        raise HubError(
            f"tag={tag!r} is no name of a tag; use letters, digits, '.', '-' and '_'. Nothing was "
            "pushed."
        )
    if create_pr and (tag or revision not in (None, MAIN)):
        raise HubError(
            "a pull request goes to the default branch and has no tag before it is merged; leave "
            "out --revision and --tag, or --create-pr."
        )
    files = verified(Path(folder))
    api = HfApi(token=token)
    target = Target(api, repo_id, private, revision or MAIN, create_pr, tag, message)
    with explained(f"pushing {folder} to {repo_id}"):
        if dry_run:
            return _rehearsed(target, files, license)
        draft = Draft(files, _checked_card(target, files, license))
        if not create_pr:  # which is opened in a repo that is there, often somebody's
            api.create_repo(repo_id, private=private, exist_ok=True)
        make_branch(target)
        done = commit(target, draft)
    add_tag(target, done.oid)
    return done


def _checked_card(target: Target, files: Mapping[str, Path], license: str | None) -> str:
    """The folder's card with its place and its licence, as the Hub would take it."""
    text = files[CARD].read_text(encoding="utf-8")
    data = parsed(text, str(files[CARD])).data
    own = licence_in(data)
    if not own and not license:  # the owner may have said it there, or where a new branch begins
        heads = (_head(target), _head(replace(target, revision=MAIN)))
        own = next((licence_in(head.card_data) for head in heads if head), {})
    base = getattr(data, "base_model", None)
    licence, source = find_licence(target.api, base, license, own)
    card = finished(text, target.name, licence, source)
    parsed(card, str(files[CARD])).validate()
    return card


def _head(target: Target) -> Any:
    """What lies there now; None where that is nothing, or nothing that may be read."""
    try:
        return target.head()
    except Exception as error:
        if status_of(error) in (401, 403, 404):
            return None
        raise


def _rehearsed(target: Target, files: Mapping[str, Path], license: str | None) -> Shipment:
    """Find out what a push would do, by reading only; the Hub may be out of reach."""
    head, note = None, ""
    try:
        card = _checked_card(target, files, license)
        head = _head(target)
    except Exception as error:
        if not is_out_of_reach(error):
            raise
        text = files[CARD].read_text(encoding="utf-8")
        card = finished(text, target.name, {"license": license} if license else {})
        note = "The Hub is out of reach: what lies there already is not known."
    change = Draft(files, card).onto(target, head)
    return Shipment(
        target.repo_id,
        target.revision,
        {name: size_of(content) for name, content in change.contents.items()},
        frozenset(change.changed),
        tuple(change.stale),
        bytes(change.contents[CARD]).decode(),
        note,
    )
