"""The commit itself: one, onto the newest head, whoever else pushes and whatever gets lost."""

from __future__ import annotations

import time

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, constants

from timm_linop.errors import HubError
from timm_linop.hub.client import explained, pause_before_retry
from timm_linop.hub.draft import MAIN, Change, Draft, Target


def make_branch(target: Target) -> None:
    """Create the branch where it is missing.

    Args:
        target: Names it.

    Raises:
        HubError: If it is a tag.
    """
    if target.revision == MAIN or target.revision.startswith("refs/"):
        return
    refs = target.api.list_repo_refs(target.repo_id)
    if target.revision in {tag.name for tag in refs.tags}:
        raise HubError(
            f"{target.revision!r} is a tag of {target.repo_id}, and a push goes to a branch; name "
            "another --revision. Nothing was pushed."
        )
    if target.revision not in {branch.name for branch in refs.branches}:
        target.api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)


def commit(target: Target, draft: Draft) -> CommitInfo:
    """Commit onto the head as it is now, and where somebody was faster onto the new one.

    A commit whose reply was lost is looked for there before it is made again.

    Args:
        target: Where to.
        draft: What.

    Returns:
        What huggingface_hub tells of it; of the head, where nothing was to be done.

    Raises:
        HubError: If the repo is public against the user's wish, or the tag is taken.
    """
    proposals = _proposals(target)
    attempt = 0
    while True:
        head = target.head()
        change = draft.onto(target, head)
        if attempt == 0:
            _check_head(target, head, change)
        elif made := _proposed(target, draft, proposals):
            return made
        try:
            return _committed(target, change, head.sha)
        except Exception as error:
            pause = pause_before_retry(error, attempt)
            if pause is None:
                raise
        time.sleep(pause)
        attempt += 1


def add_tag(target: Target, oid: str) -> None:
    """Name a commit, unless it has that name already.

    Args:
        target: Holds the tag.
        oid: The commit.

    Raises:
        HubError: If the Hub refuses; the commit stays.
    """
    if not target.tag:
        return
    done = f"the commit {oid} is in {target.repo_id}, but without its tag {target.tag}"
    with explained(done):
        if target.tags().get(target.tag) != oid:
            target.api.create_tag(target.repo_id, tag=target.tag, revision=oid)


def _committed(target: Target, change: Change, parent: str) -> CommitInfo:
    # Made anew each time: huggingface_hub writes into them.
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(name, content) for name, content in change.contents.items()),
        *(CommitOperationDelete(name) for name in change.stale),
    ]
    return target.api.create_commit(
        target.repo_id,
        operations,
        commit_message=target.message,
        revision=target.revision,
        create_pr=target.create_pr,
        parent_commit=parent,
    )


def _check_head(target: Target, head: object, change: Change) -> None:
    """Refuse what the user would not want done, while nothing is."""
    if target.private and getattr(head, "private", None) is False:
        raise HubError(
            f"{target.repo_id} is public already, and a private repo was asked for; make it "
            "private on its page, or push to another one. Nothing was pushed."
        )
    tagged = target.tags().get(target.tag) if target.tag else None
    if tagged and (change or tagged != getattr(head, "sha", None)):
        raise HubError(
            f"{target.repo_id} has a tag {target.tag} already, of the commit {tagged}; choose "
            "another --tag, or delete that one on the repo's page. Nothing was pushed."
        )


def _proposals(target: Target) -> set[str]:
    """The refs of the pull requests that are there."""
    if not target.create_pr:
        return set()
    refs = target.api.list_repo_refs(target.repo_id, include_pull_requests=True)
    return {ref.ref for ref in refs.pull_requests or []}


def _proposed(target: Target, draft: Draft, before: set[str]) -> CommitInfo | None:
    """Find the pull request that was opened although the reply was lost."""
    for ref in sorted(_proposals(target) - before):
        head = target.api.model_info(target.repo_id, revision=ref, files_metadata=True)
        if not draft.onto(target, head):
            page = f"{constants.ENDPOINT}/{target.repo_id}"
            return CommitInfo(
                commit_url=f"{page}/commit/{head.sha}",
                commit_message=target.message,
                commit_description="",
                oid=str(head.sha),
                pr_url=f"{page}/discussions/{ref.split('/')[-1]}",
                _endpoint=constants.ENDPOINT,
            )
    return None
