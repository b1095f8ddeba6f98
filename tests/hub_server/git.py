"""A bare git repository behind the few verbs a Hub needs, through the `git` command.

A Hub commit is one run of `git fast-import`: the branch moves once or not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SHA = re.compile(r"[0-9a-f]{7,40}")
_WHO = (("NAME", "hub"), ("EMAIL", "hub@hub.test"))


@dataclass(frozen=True)
class Entry:
    """A line of a git tree; `size` is 0 for a folder."""

    kind: str  # "blob" or "tree"
    oid: str
    size: int
    path: str


@dataclass(frozen=True)
class Commit:
    """A commit, as the history shows it."""

    oid: str
    author: str
    seconds: int
    title: str
    body: str


@dataclass(frozen=True)
class Change:
    """A file to write, or with no content a file or folder to delete."""

    path: str
    content: bytes | None


def _environment() -> dict[str, str]:
    """The environment of git without the caller's own settings.

    GIT_DIR and its kin are set inside a git hook: inherited, they would point at the project's
    own repository.
    """
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _WHO}
    return clean | who | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


def _quoted(path: str) -> bytes:
    """`path` as a C string, as fast-import reads it."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'.encode()


def _import_stream(
    ref: str, parent: str | None, changes: Iterable[Change], author: str, message: str
) -> Iterator[bytes]:
    """The lines of one commit in the language of fast-import."""
    text = message.encode()
    who = f"{author} <{author}@hub.test> {int(time.time())} +0000".encode()
    yield b"commit %s\ncommitter %s\n" % (ref.encode(), who)
    yield b"data %d\n%s\n" % (len(text), text)
    if parent is not None:
        yield b"from %s\n" % parent.encode()
    for change in changes:
        if change.content is None:
            yield b"D %s\n" % _quoted(change.path.rstrip("/"))
        else:
            yield b"M 100644 inline %s\n" % _quoted(change.path)
            yield b"data %d\n%s\n" % (len(change.content), change.content)
    yield b"\ndone\n"


class GitRepo:
    """One bare repository. Writers hold a lock of the caller's; readers need none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def init(self) -> None:
        """Create the repository on disk, its branch `main` unborn."""
        self.path.mkdir(parents=True)
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(self.path))

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["git", f"--git-dir={self.path}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, env=_environment())
        if done.returncode:
            raise RuntimeError(f"git {arguments[0]} failed: {done.stderr.decode().strip()}")
        return done.stdout

    def refs(self) -> dict[str, str]:
        """Full ref names and the commits they lead to, through annotated tags."""
        lines = self._git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
        fields = (line.split(" ") for line in lines.decode().splitlines())
        return {name: peeled or oid for name, oid, peeled in fields}

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag, full ref or hash of 7 digits or more; None if unknown."""
        refs = self.refs()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in refs:
                return refs[name]
        if not _SHA.fullmatch(revision):
            return None
        try:
            found = self._git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except RuntimeError:
            return None
        return found.decode().strip()

    def tree(self, commit: str) -> list[Entry]:
        """Every file and folder of a commit."""
        raw = self._git("ls-tree", "-r", "-t", "-z", "-l", "--full-tree", commit).decode()
        entries = []
        for line in filter(None, raw.split("\0")):
            meta, path = line.split("\t", 1)
            _mode, kind, oid, size = meta.split()
            entries.append(Entry(kind, oid, 0 if size == "-" else int(size), path))
        return entries

    def blobs(self, oids: Iterable[str]) -> dict[str, bytes]:
        """The contents of blobs by their ids, in one process."""
        wanted = list(oids)
        raw = self._git("cat-file", "--batch", stdin="\n".join(wanted).encode()) if wanted else b""
        found, at = {}, 0
        for oid in wanted:
            start = raw.index(b"\n", at) + 1
            size = int(raw[at:start].split()[2])
            found[oid] = raw[start : start + size]
            at = start + size + 1
        return found

    def log(self, commit: str) -> list[Commit]:
        """The history of a commit, newest first."""
        raw = self._git("log", "-z", "--format=%H%n%an%n%ct%n%s%n%b", commit).decode()
        records = (record.split("\n", 4) for record in filter(None, raw.split("\0")))
        return [Commit(oid, who, int(ct), title, body) for oid, who, ct, title, body in records]

    def commit(
        self, ref: str, parent: str | None, changes: Iterable[Change], author: str, message: str
    ) -> str:
        """Add one commit to a full ref, all changes or none, and return its hash."""
        stream = b"".join(_import_stream(ref, parent, changes, author, message))
        self._git("fast-import", "--quiet", "--done", stdin=stream)
        return self._git("rev-parse", "--verify", ref).decode().strip()

    def is_ref_name(self, ref: str) -> bool:
        """Whether git accepts `ref` as a full ref name."""
        try:
            self._git("check-ref-format", ref)
        except RuntimeError:
            return False
        return True

    def add_ref(self, ref: str, commit: str, message: str | None = None) -> None:
        """Point a new ref at a commit; a message makes an annotated tag."""
        target = commit
        if message:
            tagger = f"hub <hub@hub.test> {int(time.time())} +0000"
            name = ref.removeprefix("refs/tags/")
            text = f"object {commit}\ntype commit\ntag {name}\ntagger {tagger}\n\n{message}\n"
            target = self._git("mktag", stdin=text.encode()).decode().strip()
        self._git("update-ref", ref, target, "0" * 40)
