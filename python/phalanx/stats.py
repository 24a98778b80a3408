"""What a pool says of its workers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["WorkerStats"]


class WorkerStats(NamedTuple):
    """What a worker has done and is doing, by its own account in shared memory."""

    #: The process id; ``None`` while the next worker is being started.
    pid: int | None
    #: How many processes have been started in its place, it included.
    started: int
    #: Tasks of this process that returned; a chunk of a map is one task.
    returned: int
    #: Tasks of this process that raised.
    failed: int
    #: Seconds that these took.
    busy: float
    #: Seconds that it has been at a task; ``None`` if it is at none.
    running: float | None
    #: Tasks that wait in it.
    waiting: int
    #: Bytes of memory in use (resident); ``None`` if that cannot be learned.
    memory: int | None
    #: Seconds that its start took, its initializer included; ``None`` if it is not ready yet.
    startup: float | None
