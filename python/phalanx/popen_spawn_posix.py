"""Start a child in a fresh interpreter.

As CPython 3.13, ``Lib/multiprocessing/popen_spawn_posix.py``; but what the child is to run waits
for it in a memory file, so that nobody waits for its reader.
"""

from __future__ import annotations

import os
from multiprocessing.process import BaseProcess

from phalanx import _phalanx, _shortages, _tracker, popen_fork, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Popen"]


class _DupFd:
    """A descriptor on its way to the child, where it has the same number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def detach(self) -> int:
        return self.fd


class Popen(popen_fork.Popen):
    """A child in a fresh interpreter."""

    method = "spawn"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """The number that ``fd`` will have in the child: the same."""
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj: Any) -> None:
        payload = spawn._dump(self, spawn.get_preparation_data(process_obj._name), process_obj)
        parent_sentinel = _phalanx.self_pidfd()
        with _shortages.told("keep a child's orders", "memfd_create(2)"):
            orders = os.memfd_create("phalanx-payload")
        with open(orders, "w+b", buffering=0) as file:
            file.write(payload)
            file.seek(0)
            tracker_fd = _tracker.fd()
            command = spawn.get_command_line(
                pipe_handle=file.fileno(),
                tracker_fd=tracker_fd,
                parent_sentinel=parent_sentinel,
            )
            fds = [*self._fds, file.fileno(), tracker_fd, parent_sentinel]
            try:
                self._watch(spawn._run(command, fds))
            finally:
                _tracker.start()
