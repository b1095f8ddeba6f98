"""The repositories on disk: `root/models/alice/slim-vit/` holds `git/`, `lfs/`, `private`, `gated`.

Only locks and a cache live in memory, so a server started on the same root finds them again.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.hub_server.git import Change, Entry, GitRepo
from tests.hub_server.lfs import POINTER_MAX_SIZE, LfsObjects, Pointer

# What the Hub itself writes into the first commit: these files go to LFS whatever their size.
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".ckpt", ".h5", ".model", ".msgpack", ".npy", ".npz", ".onnx"),
    *(".pb", ".pickle", ".pkl", ".pt", ".pth", ".tflite", ".arrow", ".parquet", ".joblib"),
    *(".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"),
)

_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])(?<!\.git)", re.ASCII)


@dataclass(frozen=True)
class HubFile:
    """A file or folder of a commit, and its pointer if it is a large file."""

    entry: Entry
    pointer: Pointer | None

    @property
    def size(self) -> int:
        """The size of the file itself, not of its pointer."""
        return self.pointer.size if self.pointer else self.entry.size


class Repo:
    """One repository of the Hub."""

    def __init__(self, folder: Path, kind: str, repo_id: str) -> None:
        self.kind, self.id = kind, repo_id
        self.namespace = repo_id.split("/")[0]
        self.git = GitRepo(folder / "git")
        self.lfs = LfsObjects(folder / "lfs")
        self.lock = threading.Lock()  # held by whoever moves or adds a ref
        self._private_mark = folder / "private"
        self._gate = folder / "gated"
        self._pointers: dict[str, Pointer | None] = {}  # by blob; blobs never change

    @property
    def private(self) -> bool:
        """Whether only the owner sees it."""
        return self._private_mark.exists()

    @property
    def gated(self) -> bool:
        """Whether its files are only for the owner and those he let in."""
        return self._gate.exists()

    def gate(self, readers: Iterable[str]) -> None:
        """Keep its files for the owner and these users."""
        self._gate.write_text("\n".join(readers))

    def lets_in(self, name: str | None) -> bool:
        """Whether a user, None for a stranger, may have the files."""
        if not self.gated or name == self.namespace:
            return True
        return name is not None and name in self._gate.read_text().splitlines()

    @property
    def url_path(self) -> str:
        """The path of its page: models stand at the root, other kinds under their own name."""
        return f"/{self.id}" if self.kind == "models" else f"/{self.kind}/{self.id}"

    def create(self, private: bool) -> None:
        """Make the repository, with the Hub's own first commit so that it has a head."""
        self.git.init()
        if private:
            self._private_mark.touch()
        rules = "".join(
            f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
        )
        first = [Change(".gitattributes", rules.encode())]
        self.git.commit("refs/heads/main", None, first, "system", "initial commit")

    def new_pull_request(self) -> str:
        """The ref of the next one; the caller holds the lock until it is there."""
        there = [ref for ref in self.git.refs() if ref.startswith("refs/pr/")]
        return f"refs/pr/{1 + max((int(ref.split('/')[-1]) for ref in there), default=0)}"

    def files(self, commit: str) -> dict[str, HubFile]:
        """Everything in a commit by path, with the pointers read."""
        entries = self.git.tree(commit)
        small = {e.oid for e in entries if e.kind == "blob" and e.size <= POINTER_MAX_SIZE}
        for oid, content in self.git.blobs(small - self._pointers.keys()).items():
            self._pointers[oid] = Pointer.parse(content)
        return {e.path: HubFile(e, self._pointers.get(e.oid)) for e in entries}


class Store:
    """All repositories under one root folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._repos: dict[tuple[str, str], Repo] = {}

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """The repository of that kind and id, or None."""
        with self._lock:
            return self._find(kind, repo_id)

    def create(self, kind: str, repo_id: str, private: bool) -> bool:
        """Make a repository; False if it is there already."""
        with self._lock:
            if self._find(kind, repo_id):
                return False
            repo = Repo(self._folder(kind, repo_id), kind, repo_id)
            repo.create(private)
            self._repos[kind, repo_id] = repo
            return True

    def _find(self, kind: str, repo_id: str) -> Repo | None:
        known = self._repos.get((kind, repo_id))
        if known is None and is_repo_id(repo_id) and self._folder(kind, repo_id).is_dir():
            known = Repo(self._folder(kind, repo_id), kind, repo_id)
            self._repos[kind, repo_id] = known
        return known

    def _folder(self, kind: str, repo_id: str) -> Path:
        return self._root / kind / repo_id


def is_repo_id(repo_id: str) -> bool:
    """Whether this is `namespace/name` in the Hub's alphabet, and so safe as a path.

    >>> is_repo_id("alice/slim-vit.v2"), is_repo_id("alice/../bob"), is_repo_id("gpt2")
    (True, False, False)
    """
    parts = repo_id.split("/")
    return len(parts) == 2 and all(_NAME.fullmatch(part) for part in parts)
