"""Start a child as a fork of the template process.

As CPython 3.13, ``Lib/multiprocessing/popen_forkserver.py``.
"""

from __future__ import annotations

from multiprocessing.process import BaseProcess

from phalanx import forkserver, popen_fork, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Popen"]


class _DupFd:
    """A descriptor on its way to the child: the index of its copy there."""

    def __init__(self, ind: int) -> None:
        self.ind = ind

    def detach(self) -> int:
        return forkserver.get_inherited_fds()[self.ind]


class Popen(popen_fork.Popen):
    """A child that the template forked."""

    method = "forkserver"
    DupFd = _DupFd

    def __init__(self, process_obj: BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """The index of ``fd`` among the descriptors that the child will inherit."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj: Any) -> None:
        data = spawn.get_preparation_data(process_obj._name)
        forkserver.ensure_running()
        stdio = forkserver._open_stdio()
        data.update(forkserver._forkserver.changes(), stdio=stdio)
        payload = spawn._dump(self, data, process_obj)
        target = getattr(process_obj, "_target", None)
        modules = [type(process_obj).__module__, getattr(target, "__module__", None) or ""]
        self._watch(forkserver._forkserver.launch(payload, [*self._fds, *stdio], modules))
