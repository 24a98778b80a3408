"""What phalanx tells ``logging``, as the logger ``phalanx``: launches, deaths, restarts.

========  ========================================================================
level     what
========  ========================================================================
DEBUG     a process, a worker, a template was started; a worker has left as agreed
WARNING   a worker, a supervised child, a template has died, and is replaced
ERROR     a pool or a supervisor has ended before its time
========  ========================================================================

What is told is text and numbers only: a handler may keep it as long as it likes.

Silent unless the program has set up logging: the logger has a handler that does nothing. As long
as nobody has imported ``logging`` nobody can be listening, and it is not imported here.
"""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from typing import Any

__all__ = ["debug", "error", "exit_in_words", "imported_logging", "warning"]

_logger: logging.Logger | None = None


def debug(message: str, *args: object) -> None:
    """Tell what is as usual."""
    if (logger := _listener()) is not None:
        logger.debug(message, *args)


def warning(message: str, *args: object) -> None:
    """Tell what is not, and is made good."""
    if (logger := _listener()) is not None:
        logger.warning(message, *args)


def error(message: str, *args: object) -> None:
    """Tell what is not made good."""
    if (logger := _listener()) is not None:
        logger.error(message, *args)


def imported_logging() -> Any | None:
    """``logging``, if the program has it; not while some thread is importing it."""
    module = sys.modules.get("logging")
    unfinished = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return None if unfinished else module


def _listener() -> logging.Logger | None:
    global _logger  # noqa: PLW0603
    if _logger is None and (module := imported_logging()) is not None:
        _logger = module.getLogger("phalanx")
        _logger.addHandler(module.NullHandler())
    return _logger


def exit_in_words(exitcode: int | None) -> str:
    """How a process ended, for a sentence."""
    if exitcode is None:
        return "ended"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"
