"""What a worker of a pool does, and what it is started with.

Every worker imports this, so it imports little.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import util

from . import _budget, _interrupts, _phalanx, _records
from ._descriptors import Passed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Seat", "worker"]


class Seat:
    """What a worker is started with: numbers of descriptors, which seat is its own, its share."""

    #: Modules to import before the first task.
    preload: tuple[str, ...] = ()
    #: The queue by whose pickler results go, of a pool that has one.
    answers: object = None

    def __init__(self, seating: _phalanx.Seating, share: int, threads: int | None) -> None:
        self._passed = Passed(seating.memory, seating.event, seating.lifeline, seating.report)
        self._rest = seating.seat, seating.tree, share, threads, _records.levels()

    def sit(self) -> _phalanx.Worker:
        """In the worker: take the seat."""
        memory, event, lifeline, report = self._passed.take()
        seat, tree, share, threads, levels = self._rest
        _budget.take(share, threads)
        _say_what_you_do(report)
        if levels is not None:
            _records.send_to_parent(levels)
        if self.answers is not None:
            from . import _pickling

            _pickling.answer_by(self.answers)
        try:
            return _phalanx.Worker(memory, event, lifeline, seat, tree)
        finally:
            for fd in (memory, event, lifeline):
                os.close(fd)


def _say_what_you_do(report: int) -> None:
    """Write the stacks of all threads when asked to, or when we crash; end the task when told to.

    SIGURG asks, and tells. The interpreter answers between two instructions; who waits for the
    system is interrupted, and goes on waiting unless the task is to end. The other signal is for
    one that does not answer: its stacks are written at once, in the middle of C code.
    """
    import faulthandler

    def answer(_signum: int, _frame: object) -> None:
        faulthandler.dump_traceback(report)
        _phalanx.heed()

    signal.signal(signal.SIGURG, answer)
    faulthandler.register(_phalanx.trace_signal(), report)
    if not faulthandler.is_enabled():
        faulthandler.enable(report)


class Loud:
    """An initializer whose failure the worker logs, as ``concurrent.futures`` does."""

    def __init__(self, initializer: Callable[..., object]) -> None:
        self._initializer = initializer

    def __call__(self, *args: Any) -> None:
        try:
            self._initializer(*args)
        except BaseException:
            from concurrent.futures._base import LOGGER

            LOGGER.critical("Exception in initializer:", exc_info=True)
            raise


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
    _interrupts.let_in()
    try:
        for name in seat.preload:
            __import__(name)
        if initializer is not None:
            initializer(*initargs)
    except BaseException as error:
        import traceback

        message = "".join(traceback.format_exception_only(error)).strip()
        desk.unfit(message, traceback.format_exc())
        sys.exit(1)
    util.debug("worker ready")
    desk.serve(maxtasks)
    util.debug("worker leaving")
