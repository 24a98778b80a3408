"""What is short, said where Python itself met the limit: in ``os.fork``, in a thread's start.

Errors of the engine have said it already, in the same words: ``phalanx::error::hint``.
"""

from __future__ import annotations

import contextlib
import errno

from . import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["is_shortage", "told"]

_SHORT = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC}
_NO_THREAD = "can't start new thread"  # CPython's RuntimeError for the system's EAGAIN


@contextlib.contextmanager
def told(doing: str, call: str | None = None) -> Iterator[None]:
    """Say in an error what was being done, which limit was met, and how to raise it.

    The exception stays what it is, with its ``errno`` and ``filename``. ``call`` is the system call
    that is made, for the case that there is none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and not str(error.strerror).startswith("failed to "):
            hint = _phalanx.hint(error.errno, call)
            if hint is not None:
                error.strerror = f"failed to {doing}: {error.strerror}: {hint}"
                error.args = error.errno, error.strerror  # what a pickle takes along
        raise
    except RuntimeError as error:
        if error.args == (_NO_THREAD,):
            hint = _phalanx.hint(errno.EAGAIN)
            error.args = (f"failed to {doing}: {_NO_THREAD}: {hint}",)
        raise


def is_shortage(error: BaseException) -> int | None:
    """The system's number for what is short, if that is what the error says."""
    if isinstance(error, OSError) and error.errno in _SHORT:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return errno.EAGAIN
    return None
