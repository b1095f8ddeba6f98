"""Files of a Hub repo, through the Hub's own client and cache: whole, of one commit, or refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from .checkpoint import CONFIG, WEIGHTS
from .errors import CheckpointError, HubError


def fetch(
    repo: str,
    files: Iterable[str] = (CONFIG, WEIGHTS),
    *,
    token: str | None = None,
    cache_dir: Any = None,
) -> Path:
    """Download files of a repo, all of one commit, into the cache; or find them there.

    Args:
        repo: ``user/repo`` or ``user/repo@revision``.
        files: Their names.
        token: A token that may read it; None takes the one that is logged in, or HF_TOKEN.
        cache_dir: The client's cache; None takes its own.

    Returns:
        The folder that holds them.

    Raises:
        HubError: If the Hub does not hand them out and they are not in the cache.
        CheckpointError: If a file in the cache is damaged.

    Example:
        >>> fetch("no id")
        Traceback (most recent call last):
        ...
        timm_linop.errors.HubError: hf-hub:no id cannot be read: that is no id of a repo; check ...
    """
    repo_id, _, revision = repo.partition("@")
    for file in files:
        path = _fetch_one(repo, repo_id, file, revision or None, token, cache_dir)
        _check_whole(path, repo_id)
        # A branch may move while its files are read: the others are of the first one's commit.
        revision = path.parent.name
    return path.parent


def _fetch_one(repo: str, repo_id: str, file: str, revision: str | None, *where: Any) -> Path:
    token, cache_dir = where
    try:
        kwargs = {"revision": revision, "token": token, "cache_dir": cache_dir or None}
        return Path(hf_hub_download(repo_id, file, **kwargs))
    except Exception as error:  # of the client, its HTTP library, and the disk
        refusal = HubError(f"hf-hub:{repo[:200]} cannot be read: {_reason(error, file)}")
    # Raised out here: the client's exceptions hold the request, and with it the token.
    raise refusal


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (
        GatedRepoError,
        "it is gated; check the id, ask for access on its page, and log in ('hf auth login', or "
        "HF_TOKEN).",
    ),
    (
        RepositoryNotFoundError,
        "there is no such repo, or it is private and the token may not see it; check the id, and "
        "for a private one log in ('hf auth login', or HF_TOKEN).",
    ),
    (
        RevisionNotFoundError,
        "it has no branch, tag or commit of that name; check the id and what stands behind its @.",
    ),
    (
        RemoteEntryNotFoundError,
        "it holds no {file}, so it is no model that timm_linop.push() wrote; check the id.",
    ),
    (HFValidationError, "that is no id of a repo; check the id (user/repo)."),
)
_BY_STATUS = {
    401: "the token is not valid; log in again ('hf auth login', or HF_TOKEN).",
    403: "the token may not read it; use another one, or ask its owner for access.",
    429: "too many requests; wait a minute and try again.",
}


def _reason(error: BaseException, file: str) -> str:
    """Say why and what next, without anything that the client says: it could hold a token."""
    uncached = isinstance(error, LocalEntryNotFoundError)
    missing = f"{file} is not in the cache and " if uncached else ""
    if uncached and constants.is_offline_mode():
        return f"{missing}HF_HUB_OFFLINE is set; unset it once to download the model."
    error = error.__cause__ if uncached and error.__cause__ is not None else error
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason.format(file=file)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        advice = _BY_STATUS.get(status, "try again in a minute.")
        return f"{missing}the Hub answers {status} for {file}; {advice}"
    if uncached:
        return f"{missing}the Hub cannot be reached; check the network, then try again."
    if isinstance(error, OSError) and error.errno is not None:
        return (
            f"{file} cannot be written into the cache ({error.strerror}); make room there, or set "
            "HF_HOME to a folder that has some."
        )
    return (
        f"the download of {file} broke off ({type(error).__name__}); check the network, then try "
        "again."
    )


_HASH = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")


def _check_whole(path: Path, repo_id: str) -> None:
    """Hold a file in the cache against the hash that it is named by."""
    blob = path.readlink() if path.is_symlink() else path
    if _HASH.fullmatch(blob.name) and blob.name not in _hashes(path, len(blob.name)):
        raise CheckpointError(
            f"{path} is damaged: its bytes are not those that were downloaded. Get it again with "
            f"'hf download {repo_id} {path.name} --revision {path.parent.name} --force-download', "
            f"or delete {path.resolve()} and load the model again."
        )


def _hashes(path: Path, length: int) -> set[str]:
    """What the file may be called: large ones by SHA-256, small ones as git or a mirror does."""
    if length == 64:
        with path.open("rb") as file:
            return {sha_fileobj(file).hex()}
    content = path.read_bytes()
    return {git_hash(content), hashlib.sha1(content, usedforsecurity=False).hexdigest()}
