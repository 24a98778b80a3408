"""Descriptors of shared memory on their way to a child.

Many objects lie in one arena, behind one descriptor, and a descriptor that is passed to a spawned
child twice has the same number there twice, for whoever comes first to close. So each goes once a
child, as one object, that all who need the descriptor share.
"""

from __future__ import annotations

import os
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Descriptor", "pass_on"]


class Descriptor:
    """A descriptor that is pickled; in the process that unpickles it, a copy of its own."""

    def __init__(self, fd: int, owned: bool = False) -> None:
        self.fd = fd
        self._owned = owned

    def __reduce__(self) -> tuple[Callable[[Any], Descriptor], tuple[Any]]:
        return _receive, (reduction.DupFd(self.fd),)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._owned:
            close(self.fd)


def pass_on(fd: int) -> Descriptor:
    """What stands for ``fd`` in a pickle; the same object for the same child."""
    popen = get_spawning_popen()
    if popen is None:
        return Descriptor(fd)
    known: dict[int, Descriptor] = vars(popen).setdefault("_phalanx_passed", {})
    return known.setdefault(fd, Descriptor(fd))


def _receive(dup: Any) -> Descriptor:
    return Descriptor(dup.detach(), owned=True)
