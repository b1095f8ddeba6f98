"""Run timm's own model tests on slim and expanded twins: python -m tests.timm_suite [pytest args].

``--fetch-only`` stops after the download.
"""

from __future__ import annotations

import os
import subprocess
import sys

from .sdist import ROOT, fetch


def main(args: list[str]) -> int:
    folder = fetch()
    if "--fetch-only" in args:
        print(folder)
        return 0
    # There timm leaves out two of its tests, for want of memory.
    env = {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"}
    command = [sys.executable, "-m", "pytest", "-p", "tests.timm_suite.plugin"]
    command += ["-p", "no:cacheprovider", "--config-file", str(folder / "pyproject.toml")]
    return subprocess.call([*command, str(folder / "test_models.py"), *args], cwd=ROOT, env=env)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
