"""Descriptors that a child is started with, whatever the start method."""

from __future__ import annotations

import os
from multiprocessing import reduction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Passed"]


class Passed:
    """Descriptors of the parent, to be an attribute of what its child is started with."""

    def __init__(self, *fds: int) -> None:
        self._fds: list[Any] = list(fds)

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(fd) for fd in self._fds]

    def __setstate__(self, fds: list[Any]) -> None:
        self._fds = fds

    def take(self) -> list[int]:
        """In the child, once: its own, which it closes."""
        # A forked child has its parent's numbers.
        return [os.dup(fd) if isinstance(fd, int) else fd.detach() for fd in self._fds]
