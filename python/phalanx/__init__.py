"""``multiprocessing`` built anew: the same names, on an engine of its own.

``import phalanx as multiprocessing`` is all that a program changes. What is added to the standard
library's names: the exceptions `WorkerDied`, `TaskTimeout`, `TaskCancelled`,
`WorkerMemoryExceeded`, `RemoteError` and `InitializerFailed`, and the warning `AbandonedLock`;
`Supervisor`, which keeps named processes running; `share` and `loan` for large data; and `install`,
which makes ``multiprocessing`` itself be this package.
"""

from __future__ import annotations

from phalanx import context as context
from phalanx import process as process
from phalanx import reduction as reduction
from phalanx.context import _default_context

# typing itself costs a fifth of what all of multiprocessing costs to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from phalanx.exceptions import (
        AbandonedLock,
        InitializerFailed,
        RemoteError,
        SupervisorFailed,
        TaskCancelled,
        TaskTimeout,
        WorkerDied,
        WorkerMemoryExceeded,
    )
    from phalanx.futures import ProcessPoolExecutor
    from phalanx.sharing import Shared, loan, share
    from phalanx.supervisor import ChildSpec, Supervisor
del TYPE_CHECKING

__all__ = [
    "AbandonedLock",
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "ChildSpec",
    "Condition",
    "Event",
    "InitializerFailed",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "ProcessPoolExecutor",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "RemoteError",
    "Semaphore",
    "Shared",
    "SimpleQueue",
    "Supervisor",
    "SupervisorFailed",
    "TaskCancelled",
    "TaskTimeout",
    "TimeoutError",
    "Value",
    "WorkerDied",
    "WorkerMemoryExceeded",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "install",
    "loan",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
    "share",
]

SUBDEBUG = 5
SUBWARNING = 25

Array = _default_context.Array
AuthenticationError = context.AuthenticationError
Barrier = _default_context.Barrier
BoundedSemaphore = _default_context.BoundedSemaphore
BufferTooShort = context.BufferTooShort
Condition = _default_context.Condition
Event = _default_context.Event
JoinableQueue = _default_context.JoinableQueue
Lock = _default_context.Lock
Manager = _default_context.Manager
Pipe = _default_context.Pipe
Pool = _default_context.Pool
Process = context.Process
ProcessError = context.ProcessError
Queue = _default_context.Queue
RLock = _default_context.RLock
RawArray = _default_context.RawArray
RawValue = _default_context.RawValue
Semaphore = _default_context.Semaphore
SimpleQueue = _default_context.SimpleQueue
TimeoutError = context.TimeoutError
Value = _default_context.Value
active_children = _default_context.active_children
allow_connection_pickling = _default_context.allow_connection_pickling
cpu_count = _default_context.cpu_count
current_process = _default_context.current_process
freeze_support = _default_context.freeze_support
get_all_start_methods = _default_context.get_all_start_methods
get_context = _default_context.get_context
get_logger = _default_context.get_logger
get_start_method = _default_context.get_start_method
log_to_stderr = _default_context.log_to_stderr
parent_process = _default_context.parent_process
reducer = _default_context.reducer
set_executable = _default_context.set_executable
set_forkserver_preload = _default_context.set_forkserver_preload
set_start_method = _default_context.set_start_method


def install() -> None:
    """Make the standard library's ``multiprocessing`` be this package, from here on.

    It holds for the whole program: its libraries, its children, and whatever has imported
    ``multiprocessing`` before. Best called at the top of a program; see ``phalanx._install`` for
    what it cannot reach. ``python -m phalanx PROGRAM`` does it for a program that is not to be
    changed. Called again, it does nothing.
    """
    from phalanx import _install

    _install.install()


# Loaded when first asked for: our exceptions need the standard library's pool module, which most
# programs never import.
_LAZY = {
    "exceptions": {
        *("AbandonedLock", "InitializerFailed", "RemoteError", "SupervisorFailed"),
        *("TaskCancelled", "TaskTimeout", "WorkerDied", "WorkerMemoryExceeded"),
    },
    "sharing": {"Shared", "loan", "share"},
    "supervisor": {"ChildSpec", "Supervisor"},
}
_SUBMODULES = (
    *(
        "connection",
        "dummy",
        "exceptions",
        "forkserver",
        "futures",
        "heap",
        "managers",
        "pool",
        "queues",
    ),
    *("resource_sharer", "resource_tracker", "shared_memory", "sharedctypes", "sharing", "spawn"),
    *("supervisor", "synchronize", "util"),
)


def __getattr__(name: str) -> Any:
    import importlib

    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    if name == "ProcessPoolExecutor":
        from phalanx import futures

        return futures.ProcessPoolExecutor
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
