"""What the Hub's client raises, told in one sentence that holds no token."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError

from timm_linop.errors import HubError, LinOPError

_ADVICE = {
    401: "the token is missing or not valid; log in again with 'hf auth login'.",
    403: "the token may not write there; use a token with write access to that account.",
    404: "there is no such repo or revision, or the token may not see it; check the id.",
    409: "someone else is writing there; try again.",
    412: "others keep pushing at the same moment; push again when they are done.",
    429: "too many requests; wait {wait} and try again.",
}
_TROUBLE = "the Hub has trouble of its own; try again later."

# Of n racing pushes one wins in each round, so eight rounds are enough for eight.
_ROUNDS = 8
# A commit whose reply was lost, or that met a short trouble of the Hub's.
_TRIES = 3
_LONGEST_WAIT = 60  # seconds that a rate limit may ask for before the user is told to wait
# A generator of its own: the global ones belong to training.
_dice = random.Random()


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the id of a repo.

    Args:
        repo_id: ``user/repo``.

    Raises:
        HubError: If it is none.

    Example:
        >>> check_repo_id("slim")
        Traceback (most recent call last):
        ...
        timm_linop.errors.HubError: 'slim' is no id of a repo on the Hub; give user/repo, of ...
    """
    owner, _, name = repo_id.partition("/")
    legal = all(re.fullmatch(r"\w[\w.-]*(?<![.-])", part, re.ASCII) for part in (owner, name))
    if not legal or ".." in repo_id or "--" in repo_id or len(name) > 96 or name.endswith(".git"):
        raise HubError(
            f"{repo_id!r} is no id of a repo on the Hub; give user/repo, of letters, digits, '-', "
            "'_' and '.'."
        )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one sentence without headers or tokens.

    Args:
        what: What is being done, the beginning of that sentence.

    Raises:
        HubError: In place of an error of the client's.

    Example:
        >>> with explained("pushing"):
        ...     raise ConnectionError("Bearer hf_secret")
        Traceback (most recent call last):
        ...
        timm_linop.errors.HubError: pushing: https://... cannot be reached (ConnectionError); ...
    """
    try:
        yield
    except LinOPError:
        raise
    except Exception as error:
        told = HubError(f"{what}: {_reason(error)}")
        try:
            raise told from None
        finally:
            # The client's exceptions hold the request, and with it the token; this one would
            # still carry them along, unseen.
            told.__context__ = None


def _reason(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "no token found; log in with 'hf auth login', or set HF_TOKEN to one that may write."
    status = status_of(error)
    if status is None and isinstance(error, ValueError):  # the client's own look at what is sent
        return f"{' '.join(str(error).split())[:300]}"
    if isinstance(error, OSError) and error.filename:  # of this machine
        return f"{error.filename}: {error.strerror}; nothing was pushed."
    if status is None:
        name = type(error).__name__
        return f"{constants.ENDPOINT} cannot be reached ({name}); check the network and try again."
    seconds = _retry_after(error)
    wait = "a minute" if seconds is None else f"{seconds:g} seconds"
    advice = _ADVICE.get(status, _TROUBLE if status >= 500 else "see what the repo's page says.")
    return f"{constants.ENDPOINT} answered {status}; {advice.format(wait=wait)}"


def status_of(error: BaseException | None) -> int | None:
    """Find the HTTP status behind an error of the client's; None where no reply came.

    Example:
        >>> status_of(ConnectionError()) is None
        True
    """
    response = _found(error, "response")
    return getattr(response, "status_code", None)


def is_out_of_reach(error: Exception) -> bool:
    """Tell whether no Hub answered at all, and not that it refused.

    Example:
        >>> is_out_of_reach(ConnectionError()), is_out_of_reach(ValueError("no valid card"))
        (True, False)
    """
    return status_of(error) is None and not isinstance(error, LinOPError | ValueError)


def pause_before_retry(error: Exception, attempt: int) -> float | None:
    """Tell whether a failed commit is worth another look at the repo, and when.

    The client repeats everything but the commit itself. A commit whose reply was lost may have
    happened: whoever reads the head again and commits once more finds nothing left to do then.

    Args:
        error: What the client raised.
        attempt: How many commits were tried before this one.

    Returns:
        Seconds to wait; None where it is over.

    Example:
        >>> pause_before_retry(ValueError("no valid card"), 0) is None
        True
    """
    if "/commit/" not in str(getattr(_found(error, "request"), "url", "")):
        return None
    status, seconds = status_of(error), _retry_after(error)
    if status in (409, 412):
        return _dice.uniform(0, 0.2 * (attempt + 1)) if attempt + 1 < _ROUNDS else None
    if attempt + 1 >= _TRIES:
        return None
    if status == 429:
        return seconds if seconds is not None and seconds <= _LONGEST_WAIT else None
    return float(attempt + 1) if status is None or status >= 500 else None


def _found(error: BaseException | None, name: str) -> Any:
    """The response or request of an error, or of what caused it."""
    while error is not None:
        try:
            found = getattr(error, name, None)
        except RuntimeError:  # httpx's, where an error has no request
            found = None
        if found is not None:
            return found
        error = error.__cause__
    return None


def _retry_after(error: Exception) -> float | None:
    told = getattr(_found(error, "response"), "headers", {}).get("Retry-After", "")
    return float(told) if told.isdecimal() else None
