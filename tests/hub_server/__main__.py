"""Start a Hub by hand: `python -m tests.hub_server`, to try a push without the real one.

It prints what to export, then one line per request until Ctrl-C.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path

from tests.hub_server.server import Exchange, HubServer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description=__doc__)
    parser.add_argument("--root", type=Path, help="folder to keep; default: one that is removed")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--user", default="alice", help="owner of the token; default: alice")
    return parser.parse_args()


def _show(exchange: Exchange) -> None:
    print(f"{exchange.status} {exchange.method} {exchange.path}", flush=True)


def main() -> None:
    """Serve until Ctrl-C."""
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="hub_server_") as temporary:
        root = args.root or Path(temporary)
        with HubServer(root, port=args.port, on_request=_show) as hub:
            print(f"export HF_ENDPOINT={hub.endpoint}")
            print(f"export HF_TOKEN={hub.token(args.user, write=True)}  # may write {args.user}/*")
            print("export HF_HUB_DISABLE_XET=1", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("stopped")


if __name__ == "__main__":
    main()
