"""Sweeps over every timm architecture: ``python -m benchmarks.sweep expand | prune``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the command line to the sweep it names.

    Args:
        arguments: The command line; None takes the process's own.

    Returns:
        The sweep's exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("sweep", choices=["expand", "prune"], help="what to do to each of them")
    given = list(sys.argv[1:] if arguments is None else arguments)
    sweep = parser.parse_args(given[:1]).sweep
    # Imported here, so that one sweep never waits for what the other needs.
    if sweep == "prune":
        from benchmarks import sweep_prune

        return sweep_prune.main(given[1:])
    from benchmarks import sweep_expand

    return sweep_expand.main(given[1:])


if __name__ == "__main__":
    sys.exit(main())
