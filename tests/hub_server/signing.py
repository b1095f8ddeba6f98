"""Signed addresses of large files, on another origin than the API, as a storage service has them.

The client follows redirects within one origin on its own and so would lose the X-Linked headers;
it must also not send its token to the other origin, and a signature in the query replaces it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from tests.hub_server.protocol import HubError, Request


class SignedUrls:
    """Addresses under one origin that open one path for one method.

    >>> urls = SignedUrls("http://localhost:1")
    >>> urls.sign("GET", "/storage/x").startswith("http://localhost:1/storage/x?signature=")
    True
    """

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._key = secrets.token_bytes(32)

    def sign(self, method: str, path: str) -> str:
        """The address that lets its bearer call `method` on `path`."""
        return f"{self._origin}{path}?signature={self._signature(method, path)}"

    def check(self, request: Request) -> None:
        """Refuse a request whose signature does not fit its method and path."""
        method = "GET" if request.method == "HEAD" else request.method
        given = request.query.get("signature", "")
        if not hmac.compare_digest(given.encode(), self._signature(method, request.path).encode()):
            raise HubError(403, "The request signature does not match")

    def _signature(self, method: str, path: str) -> str:
        return hmac.new(self._key, f"{method} {path}".encode(), hashlib.sha256).hexdigest()
