"""The processors that a process may keep busy: the machine's, or a worker's share of its pool's.

A pool divides what its process may use among its workers. A pool in a task has by default as many
workers as its worker's share, so pools in pools do not multiply; and libraries that start threads
of their own (OpenMP, OpenBLAS, MKL, ...) are told to start no more than that in a worker.
"""

from __future__ import annotations

import os
import sys

from . import _phalanx

__all__ = ["processors", "share_of", "take"]

#: What such libraries read when they are loaded.
VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_share: int | None = None


def processors() -> int:
    """How many processors this process may keep busy."""
    return _share or _told() or _phalanx.default_processes()


def _told() -> int | None:
    """What ``-X cpu_count`` or ``PYTHON_CPU_COUNT`` says, before CPython 3.13 too."""
    environ = {} if sys.flags.ignore_environment else os.environ
    told = sys._xoptions.get("cpu_count") or environ.get("PYTHON_CPU_COUNT")
    # CPython itself refuses to start with nonsense, where it knows the option.
    return int(told) or None if isinstance(told, str) and told.isdecimal() else None


def share_of(workers: int) -> int:
    """The share of one of so many workers."""
    return max(1, processors() // workers)


def take(share: int, threads: int | None) -> None:
    """In a worker: keep to its share, and have libraries start ``threads``, or as many as that.

    Where the program has set their variables, these stay. A library that is loaded already, in a
    forked worker, is told by `threadpoolctl`, if that is installed.
    """
    global _share  # noqa: PLW0603
    _share = share
    if threads is None and share >= _phalanx.default_processes():
        return  # which is what they do anyway
    if threads is None and any(name in os.environ for name in VARIABLES):
        return
    os.environ.update(dict.fromkeys(VARIABLES, str(threads or share)))
    if "numpy" in sys.modules or "scipy" in sys.modules:
        try:
            import threadpoolctl
        except ImportError:
            return
        threadpoolctl.threadpool_limits(threads or share)
