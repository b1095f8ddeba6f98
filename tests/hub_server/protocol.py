"""What goes in and out of the server, freed from sockets: Request, Reply and HubError.

The handlers are plain functions over these three, so they read like the wire format they speak.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any


@dataclass(frozen=True)
class Request:
    """One HTTP request; `path` is still percent-encoded and carries no query."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Message = field(default_factory=Message, repr=False)  # they hold the token
    body: bytes = field(default=b"", repr=False)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object, or a 400."""
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body is not a JSON object")
        return value


@dataclass(frozen=True)
class Reply:
    """One HTTP response; of a `cut` one only half of the body is sent, then the server hangs up."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply whose body is `value` as JSON (dates of a card's YAML become text)."""
    head = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Reply(status, json.dumps(value, default=str).encode(), head)


class HubError(Exception):
    """A refusal, told the Hub's way: a status, X-Error-Code, X-Error-Message and a JSON body.

    Args:
        status: HTTP status.
        message: One sentence, for the X-Error-Message header and the body's `error`.
        code: X-Error-Code, from which the client picks the exception class: RepoNotFound,
            RevisionNotFound, EntryNotFound or GatedRepo.
        headers: More headers.
        **body: More keys of the body, such as the `url` of a repository that exists (409).
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = dict(headers or {}), body

    def reply(self) -> Reply:
        """The refusal as a reply."""
        one_line = " ".join(self.message.split()).encode("ascii", "replace").decode()
        head = {"X-Error-Message": one_line, **self.headers}
        if self.code:
            head["X-Error-Code"] = self.code
        return json_reply({"error": self.message, **self.body}, self.status, head)
