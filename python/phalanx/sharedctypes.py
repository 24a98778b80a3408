"""``multiprocessing.sharedctypes``, whose locks are of this package's default context.

As CPython 3.13, ``Lib/multiprocessing/sharedctypes.py``.
"""

from __future__ import annotations

from multiprocessing import sharedctypes as _sharedctypes
from multiprocessing.sharedctypes import RawArray, RawValue, copy

from phalanx.context import _default_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

_standard: Any = _sharedctypes


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:
    """A ctypes object in shared memory, with a lock unless ``lock`` is false."""
    ctx = ctx or _default_context.get_context()
    return _standard.Value(typecode_or_type, *args, lock=lock, ctx=ctx)


def Array(
    typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None
) -> Any:
    """A ctypes array in shared memory, with a lock unless ``lock`` is false."""
    ctx = ctx or _default_context.get_context()
    return _standard.Array(typecode_or_type, size_or_initializer, lock=lock, ctx=ctx)


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """``obj``, a ctypes object in shared memory, with a lock."""
    return _standard.synchronized(obj, lock, ctx or _default_context.get_context())


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)
