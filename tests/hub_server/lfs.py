"""Large files: objects named by their SHA-256, and the pointers that git keeps in their place."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

POINTER_MAX_SIZE = 200  # bytes; no pointer is longer, so larger blobs need no look

_OID = re.compile(r"[0-9a-f]{64}")
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)


@dataclass(frozen=True)
class Pointer:
    """The text that stands in git for a large file."""

    oid: str
    size: int

    @classmethod
    def parse(cls, content: bytes) -> Pointer | None:
        """The pointer in a blob, or None if the blob is an ordinary file."""
        match = _POINTER.fullmatch(content)
        return cls(match[1].decode(), int(match[2])) if match else None

    def content(self) -> bytes:
        """The pointer's text.

        >>> Pointer.parse(Pointer("0" * 64, 7).content()).size
        7
        """
        spec = "https://git-lfs.github.com/spec/v1"
        return f"version {spec}\noid sha256:{self.oid}\nsize {self.size}\n".encode()


class LfsObjects:
    """The large files of one repository. Each repository has its own: a hash opens no door."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def size(self, oid: str) -> int | None:
        """The size of an object, or None if it is not here."""
        path = self._folder / oid
        return path.stat().st_size if _OID.fullmatch(oid) and path.is_file() else None

    def read(self, oid: str) -> bytes | None:
        """The bytes of an object, or None if it is not here."""
        return None if self.size(oid) is None else (self._folder / oid).read_bytes()

    def write(self, oid: str, content: bytes) -> bool:
        """Keep an object, whole or not at all; False if the bytes do not hash to its name."""
        if hashlib.sha256(content).hexdigest() != oid:
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{oid}.{secrets.token_hex(4)}.partial"
        partial.write_bytes(content)
        partial.replace(self._folder / oid)
        return True
