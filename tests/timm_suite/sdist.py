"""timm's own test file, from the source distribution of the timm that is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"  # git ignores it: timm's files are timm's
MEMBERS = {"tests/test_models.py": "test_models.py", "pyproject.toml": "pyproject.toml"}


def fetch(version: str = installed("timm")) -> Path:
    """Download timm's source distribution once and keep the two files that its model tests need.

    They lie side by side in one folder: beside timm's package, or in a package called ``tests``,
    they would be found before the installed timm and before our own tests.

    Args:
        version: timm's version on the package index.

    Returns:
        The folder with ``test_models.py`` and the ``pyproject.toml`` that configures pytest.
    """
    folder = CACHE / f"timm-{version}"
    if all((folder / name).is_file() for name in MEMBERS.values()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", scratch]
        command += ["--no-binary", "timm", "--no-deps", f"timm=={version}"]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("timm-*.tar.gz")
        unpack(archive, f"timm-{version}", folder)
    return folder


def unpack(archive: Path, top: str, folder: Path) -> None:
    """Copy the files of `MEMBERS` out of an archive; no path in it decides where one is written.

    Args:
        archive: A ``.tar.gz``.
        top: The folder that everything in it lies under.
        folder: Where the copies go.

    Raises:
        FileNotFoundError: If the archive has no such file.
    """
    with tarfile.open(archive) as tar:
        for member, name in MEMBERS.items():
            try:
                source = tar.extractfile(f"{top}/{member}")
            except KeyError:
                source = None
            if source is None:
                raise FileNotFoundError(f"{archive.name} holds no file {top}/{member}.")
            (folder / name).write_bytes(source.read())
