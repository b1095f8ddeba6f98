"""Who asks: users and their tokens, each good for reading only or for writing too.

A user owns the repositories of the namespace of the same name; there are no organisations.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from tests.hub_server.protocol import HubError


@dataclass(frozen=True)
class User:
    """The bearer of a token. The token itself stays out, so that it cannot be printed."""

    name: str
    can_write: bool


class Users:
    """The tokens given out by one server."""

    def __init__(self) -> None:
        self._by_token: dict[str, User] = {}

    def new_token(self, name: str, can_write: bool) -> str:
        """Make a token for `name`; a user may hold several."""
        token = f"hf_{secrets.token_hex(17)}"
        self._by_token[token] = User(name, can_write)
        return token

    def identify(self, authorization: str | None) -> User | None:
        """The user behind an Authorization header, None without one; 401 for a wrong token."""
        if not authorization:
            return None
        user = self._by_token.get(authorization.removeprefix("Bearer ").strip())
        if user is None:
            # The client looks for these very words to tell a bad token from a hidden repository.
            raise HubError(401, "Invalid credentials in Authorization header")
        return user
