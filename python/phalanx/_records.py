"""Log records of workers, on their way to the handlers of their pool's process.

A worker that was not forked has none of the handlers that its program has set up, so that what its
tasks log would be lost, or come out raw. Where nobody in the worker handles a record, it goes to
the pool's process, and is handled there as if it had been logged there: by the same loggers, their
levels, filters and handlers. Whoever sets up logging in the worker, by an initializer or when it
imports the main module, has said what is to become of its records, and they stay.

====================  =========================================================================
what                  where it comes from
====================  =========================================================================
``processName`` etc.  the worker's, as in every record
``task_id``           the number of the task that was running, or ``None``: the same for all
                      records of one task, and of no other soon
``levels``            a worker takes over the levels of all loggers at its start, unless it has
                      set its own: what the parent would drop is not sent
====================  =========================================================================

A record is sent before the result of its task is. It is handled by a thread of the pool, in the
order of each worker; `Pool.join` waits for that. What a killed worker had sent is handled.

On the way: text, with arguments and exceptions formatted, and what ``extra=`` has added; of what
cannot be pickled, its ``repr``.
"""

from __future__ import annotations

import pickle

from . import _log, _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

__all__ = ["handle", "levels", "send_to_parent"]


def levels() -> dict[str, int] | None:
    """The levels of all loggers that have one; ``None`` if no record would be handled here."""
    module = _log.imported_logging()
    if module is None:
        return None
    loggers: list[logging.Logger] = [module.root]
    named = list(module.root.manager.loggerDict.values())
    loggers += (logger for logger in named if isinstance(logger, module.Logger))
    handlers = (handler for logger in loggers for handler in logger.handlers)
    goes_on = getattr(module.lastResort, "sends_to_parent", False)
    if not goes_on and all(isinstance(handler, module.NullHandler) for handler in handlers):
        return None
    return {logger.name: logger.level for logger in loggers if logger.level != module.NOTSET}


def send_to_parent(levels: dict[str, int]) -> None:
    """In a worker: send on what nobody here handles."""
    import logging

    for name, level in levels.items():
        logger = logging.getLogger(None if name == "root" else name)
        if logger.level == (logging.WARNING if logger is logging.root else logging.NOTSET):
            logger.setLevel(level)

    class Sender(logging.Handler):
        """Sends records to the process that this is a worker of."""

        sends_to_parent = True

        def emit(self, record: logging.LogRecord) -> None:
            try:
                if not _phalanx.say(_dumps(_plain(record))) and last_resort is not None:
                    last_resort.handle(record)
            except Exception:
                self.handleError(record)

    last_resort = logging.lastResort
    logging.lastResort = Sender()


def handle(task: int, note: bytes) -> None:
    """Handle a record that a worker has sent."""
    import logging

    record = logging.makeLogRecord(pickle.loads(note))
    record.task_id = task >> 32 or None  # the lower half is where the pool keeps it
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _plain(record: logging.LogRecord) -> dict[str, object]:
    import logging

    fields = dict(vars(record), msg=record.getMessage(), args=None, exc_info=None)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _dumps(fields: dict[str, object]) -> bytes:
    try:
        return pickle.dumps(fields, protocol=5)
    except Exception:
        return pickle.dumps({name: _sendable(value) for name, value in fields.items()}, protocol=5)


def _sendable(value: object) -> object:
    try:
        pickle.dumps(value, protocol=5)
    except Exception:
        return repr(value)
    return value
