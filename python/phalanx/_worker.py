"""What a worker of a pool does, and what it is started with.

Every worker imports this, so it imports little.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import reduction, util

from . import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Seat", "worker"]


class Seat:
    """What a worker is started with: numbers of descriptors, and which seat is its own."""

    def __init__(self, seating: _phalanx.Seating) -> None:
        self._fds: list[Any] = [seating.memory, seating.event, seating.lifeline]
        self._seat = seating.seat

    def __getstate__(self) -> tuple[list[Any], int]:
        return [reduction.DupFd(fd) for fd in self._fds], self._seat

    def __setstate__(self, state: tuple[list[Any], int]) -> None:
        self._fds, self._seat = state

    def sit(self) -> _phalanx.Worker:
        """In the worker: take the seat."""
        passed = [] if isinstance(self._fds[0], int) else [fd.detach() for fd in self._fds]
        memory, event, lifeline = passed or self._fds  # a forked worker's are its parent's
        try:
            return _phalanx.Worker(memory, event, lifeline, self._seat)
        finally:
            for fd in passed:
                os.close(fd)


def _let_the_parent_decide(signum: int, frame: object) -> None:
    """A Ctrl-C in the terminal reaches all processes: only the parent's counts.

    A handler and not SIG_IGN, which programs that a task runs would inherit.
    """


def worker(
    seat: Seat,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    maxtasks: int | None = None,
) -> None:
    """What a worker process does."""
    desk = seat.sit()
    signal.signal(signal.SIGINT, _let_the_parent_decide)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            import traceback

            message = "".join(traceback.format_exception_only(error)).strip()
            desk.unfit(message, traceback.format_exc())
            sys.exit(1)
    util.debug("worker ready")
    desk.serve(maxtasks)
    util.debug("worker leaving")
