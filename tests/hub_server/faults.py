"""Things that go wrong on purpose: a status instead of an answer, or a connection that drops.

A test arms a fault for a method and a path; the first matching requests meet it.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Literal

from tests.hub_server.protocol import Reply, Request

When = Literal["before", "midway", "after"]


@dataclass
class Fault:
    """One armed fault: `reply` is what to answer, or else `drop` says when to hang up."""

    method: str
    path: re.Pattern[str]
    times: int
    reply: Reply | None = None
    drop: When | None = None

    def meets(self, request: Request) -> bool:
        """Whether this fault is still armed and meant for `request`."""
        method_fits = self.method in ("*", request.method)
        return self.times > 0 and method_fits and self.path.search(request.path) is not None


class Faults:
    """The armed faults of one server, oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[Fault] = []

    def arm(self, fault: Fault) -> None:
        """Add a fault behind those already armed."""
        with self._lock:
            self._armed.append(fault)

    def disarm(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._armed.clear()

    def take(self, request: Request) -> Fault | None:
        """The first fault meant for `request`, used up by one."""
        with self._lock:
            for fault in self._armed:
                if fault.meets(request):
                    fault.times -= 1
                    return fault
        return None
