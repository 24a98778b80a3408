"""ctypes objects in shared memory, alone or each with a lock.

As CPython 3.13, ``Lib/multiprocessing/sharedctypes.py``. The objects are ctypes' own, on blocks of
:mod:`phalanx.heap`; children inherit them, or are sent them while they start. ``Value.value``, and
elements and slices of an ``Array``, take the lock and read or write in one step of the engine.

==================================================  ================================================
what                                                gets, or leaves
==================================================  ================================================
a type that is none (``Value("z")``, ``Array(3, 4)``)  ``TypeError``
a negative size                                     ``ValueError``
a value that the type does not take                 ``TypeError``, as ctypes says
an int that is too large for the type               its low bits, as in ctypes
more elements than the array has                    ``IndexError``, ``ValueError`` for slices
more memory than the machine has                    ``OSError``, when it is made
``lock=`` an object without ``acquire``             ``AttributeError``
an object put into a queue, or pickled otherwise    ``RuntimeError``: it goes to children only
the maker dies, or all but one                      the object stays with the others
the last process that has it dies                   the kernel takes the memory back
a process dies while it holds the lock              the next one gets the lock, see
                                                    :mod:`phalanx.synchronize`; a scalar has its old
                                                    or its new value, an array perhaps some of each
==================================================  ================================================
"""

from __future__ import annotations

import ctypes
import weakref
from multiprocessing import reduction
from multiprocessing import sharedctypes as _sharedctypes
from multiprocessing.context import assert_spawning

from phalanx import heap
from phalanx._phalanx import Cell, Cells
from phalanx.context import _default_context
from phalanx.synchronize import Lock, RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from phalanx._phalanx import Block

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

_standard: Any = _sharedctypes

typecode_to_type: dict[Any, Any] = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}

#: What the engine can read and write itself. A subclass of one of these is not one of these: its
#: elements are objects of it.
_LETTERS: dict[Any, str] = {
    **{each: letter for letter, each in typecode_to_type.items() if letter != "u"},
    ctypes.c_bool: "?",
}

#: Locks that the engine can take itself. A subclass may have an ``acquire`` of its own.
_OURS = (RLock, Lock)

_register: Any = reduction.ForkingPickler.register


def RawValue(typecode_or_type: Any, *args: Any) -> Any:
    """A ctypes object in shared memory, made with ``args``; zeros by default.

    ``typecode_or_type`` is a ctypes type, or a letter as in :mod:`array`.
    """
    obj = _new_value(_type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type: Any, size_or_initializer: Any) -> Any:
    """A ctypes array in shared memory: of so many zeros, or of the elements of a sequence."""
    type_ = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    obj = _new_value(type_ * len(size_or_initializer))
    obj.__init__(*size_or_initializer)
    return obj


def Value(typecode_or_type: Any, *args: Any, lock: Any = True, ctx: Any = None) -> Any:
    """A ctypes object in shared memory, with a lock.

    ``lock`` is the lock, or true for an ``RLock`` of ``ctx``, the default context by default, or
    ``False`` for none: then the object itself is returned, as of :func:`RawValue`.
    """
    return _with_lock(RawValue(typecode_or_type, *args), lock, ctx)


def Array(
    typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True, ctx: Any = None
) -> Any:
    """A ctypes array in shared memory, with a lock; ``lock`` as for :func:`Value`."""
    return _with_lock(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def copy(obj: Any) -> Any:
    """A copy of the ctypes object ``obj``, in shared memory."""
    new = _new_value(type(obj))
    ctypes.pointer(new)[0] = obj
    return new


def synchronized(obj: Any, lock: Any = None, ctx: Any = None) -> Any:
    """The ctypes object ``obj`` with the lock ``lock``, or a new ``RLock`` of ``ctx``."""
    assert not isinstance(obj, _standard.SynchronizedBase), "object already synchronized"
    ctx = ctx or _default_context.get_context()
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        if obj._type_ is ctypes.c_char:
            return SynchronizedString(obj, lock, ctx)
        return SynchronizedArray(obj, lock, ctx)
    return _class_for(type(obj))(obj, lock, ctx)


def _type_of(typecode_or_type: Any) -> Any:
    if isinstance(typecode_or_type, str):
        try:
            return typecode_to_type[typecode_or_type]
        except KeyError:
            letters = ", ".join(typecode_to_type)
            raise TypeError(
                f"{typecode_or_type!r} is no letter of a type, which are {letters}"
            ) from None
    if not isinstance(typecode_or_type, type):
        raise TypeError(f"{typecode_or_type!r} is neither a ctypes type nor a letter of one")
    return typecode_or_type


def _with_lock(obj: Any, lock: Any, ctx: Any) -> Any:
    if lock is False:
        return obj
    if lock in (True, None):
        lock = (ctx or _default_context.get_context()).RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock, ctx=ctx)


def _new_value(type_: Any) -> Any:
    return rebuild_ctype(type_, heap.BufferWrapper(ctypes.sizeof(type_)), None)


def reduce_ctype(obj: Any) -> tuple[Callable[..., Any], tuple[Any, Any, int | None]]:
    """How an object in shared memory is pickled, for a child that starts."""
    assert_spawning(obj)
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, obj._wrapper, obj._length_)  # type: ignore[attr-defined]
    return rebuild_ctype, (type(obj), obj._wrapper, None)


def rebuild_ctype(type_: Any, wrapper: Any, length: int | None) -> Any:
    """An object of ``type_``, or an array of ``length`` of them, in the block of ``wrapper``."""
    if length is not None:
        type_ = type_ * length
    _register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def _block_of(obj: Any) -> Block | None:
    """The block that ``obj`` is on, if it is one of ours and nothing else is there."""
    wrapper = getattr(obj, "_wrapper", None)
    if isinstance(wrapper, heap.BufferWrapper):
        block = wrapper._block()
        if len(block) == ctypes.sizeof(obj):
            return block
    return None


def make_property(name: str) -> Any:
    """A property that is the attribute ``name`` of the object, under its lock."""

    def get(self: Any) -> Any:
        self.acquire()
        try:
            return getattr(self._obj, name)
        finally:
            self.release()

    def set(self: Any, value: Any) -> None:
        self.acquire()
        try:
            setattr(self._obj, name, value)
        finally:
            self.release()

    return property(get, set)


class_cache: Any = weakref.WeakKeyDictionary()


def _class_for(type_: Any) -> Any:
    """The class for objects of a structure or union: it has their fields."""
    try:
        return class_cache[type_]
    except KeyError:
        pass
    fields = {}
    for base in reversed(type_.__mro__):
        for name, *_ in vars(base).get("_fields_", ()):
            fields[name] = make_property(name)
    made = type(f"Synchronized{type_.__name__}", (SynchronizedBase,), fields)
    class_cache[type_] = made
    return made


class SynchronizedBase(_standard.SynchronizedBase):  # type: ignore[misc]
    """A ctypes object with a lock. With the object as a context manager, the lock is held."""

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        self._obj = obj
        self._lock = lock or (ctx or _default_context.get_context()).RLock()
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> Any:
        return self._lock.__exit__(*args)

    def __reduce__(self) -> Any:
        assert_spawning(self)
        return synchronized, (self._obj, self._lock)

    def get_obj(self) -> Any:
        """The ctypes object itself: to use it, hold the lock."""
        return self._obj

    def get_lock(self) -> Any:
        """The lock."""
        return self._lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} wrapper for {self._obj}>"


class Synchronized(Cell, SynchronizedBase, _standard.Synchronized):  # type: ignore[misc]
    """A scalar with a lock: ``value`` is read and written under it."""

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        SynchronizedBase.__init__(self, obj, lock, ctx)
        self._bind(
            (self._lock, type(self._lock) in _OURS),
            obj,
            _block_of(obj),
            _LETTERS.get(type(obj), "-"),
        )


class SynchronizedArray(Cells, SynchronizedBase, _standard.SynchronizedArray):  # type: ignore[misc]
    """An array with a lock: elements and slices are read and written under it."""

    def __init__(self, obj: Any, lock: Any = None, ctx: Any = None) -> None:
        SynchronizedBase.__init__(self, obj, lock, ctx)
        self._bind(
            (self._lock, type(self._lock) in _OURS),
            obj,
            _block_of(obj),
            _LETTERS.get(obj._type_, "-"),
        )


class SynchronizedString(SynchronizedArray, _standard.SynchronizedString):  # type: ignore[misc]
    """An array of ``c_char`` with a lock: as bytes, ``value`` ends at the first zero."""

    value = make_property("value")
    raw = make_property("raw")
