"""All that can be known of a push before hours are spent on what is to be pushed."""

from __future__ import annotations

from huggingface_hub import HfApi, ModelCard, ModelCardData

from timm_linop.errors import HubError
from timm_linop.hub.client import check_repo_id, explained
from timm_linop.hub.readme import find_licence, licence_in


def check_write_access(repo_id: str, *, private: bool = False, token: str | None = None) -> None:
    """Make sure that a push will be let in, before hours are spent on what is to be pushed.

    Creates the repo where it does not exist, as a push would.

    Args:
        repo_id: ``user/repo``.
        private: Whether a new repo is private.
        token: A write token; None takes the one that is logged in.

    Raises:
        HubError: If the id is none, there is no token, no write access, or no Hub, or the repo is
            public against the user's wish.

    Example:
        >>> check_write_access("no-owner")
        Traceback (most recent call last):
        ...
        timm_linop.errors.HubError: 'no-owner' is no id of a repo on the Hub; ...
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with explained(f"write access to {repo_id}"):
        api.whoami()
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(repo_id, write=True)
        if private and not api.model_info(repo_id).private:
            raise HubError(
                f"{repo_id} is public already, and a private repo was asked for; make it private "
                "on its page, name another one, or leave --hub-private out."
            )


def check_metadata(
    repo_id: str,
    *,
    base_model: str | None = None,
    license: str | None = None,
    token: str | None = None,
) -> None:
    """Hold what is known of a card's metadata against the Hub's own check; warn of no licence.

    Args:
        repo_id: ``user/repo``.
        base_model: The dense teacher's Hub id, if it has one.
        license: The licence as the user names it.
        token: As `push` takes it.

    Raises:
        HubError: If the Hub would refuse the card, or cannot be reached.

    Example:
        >>> check_metadata("no-owner")
        Traceback (most recent call last):
        ...
        timm_linop.errors.HubError: 'no-owner' is no id of a repo on the Hub; ...
    """
    check_repo_id(repo_id)
    api = HfApi(token=token)
    with explained(f"the metadata of {repo_id}"):
        head = api.model_info(repo_id) if api.repo_exists(repo_id) else None
        own = head.card_data if head else None
        licence, _ = find_licence(api, base_model, license, licence_in(own))
        data = ModelCardData(library_name="timm", base_model=base_model, **licence)
        ModelCard(f"---\n{data.to_yaml()}\n---\n").validate()
