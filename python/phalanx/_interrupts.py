"""A process that is being started cannot be interrupted: SIGINT waits until it is ready for it.

A Ctrl-C in a terminal reaches all processes at once, those that are starting, too. These would
print tracebacks out of the middle of their imports. So SIGINT is blocked in a child from its first
instruction (the mask of ``sigprocmask(2)`` is inherited), and unblocked when what it is to do
begins, by which time a handler of its own can be there.

It waits for our own imports, too: what a handler raises in the middle of one can get lost in a
callback of the import system, which has nobody to raise it to.
"""

from __future__ import annotations

import contextlib
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess
    from typing import Any

__all__ = ["held", "hold", "let_in", "restore"]

_SIGINT = (signal.SIGINT,)


def hold() -> set[Any]:
    """Block SIGINT in this thread, and say what was blocked before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _SIGINT)


def restore(before: set[Any]) -> None:
    """Block what `hold` has said."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block SIGINT in this thread meanwhile."""
    before = hold()
    try:
        yield
    finally:
        restore(before)


def let_in(process: BaseProcess | None = None) -> None:
    """Unblock SIGINT, unless what this process is to do does so itself."""
    if not getattr(process, "_lets_in_interrupts", False):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)
