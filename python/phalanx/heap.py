"""Shared memory without a name, in pieces of any size.

As CPython 3.13, ``Lib/multiprocessing/heap.py``. The pieces are the engine's blocks: many small
ones to an arena, which is one memory file, and a memory file of its own for each large one. A block
is zeros, at a multiple of 64 bytes, and its memory is there from the first touch on.

============================================  ======================================================
what                                          gets, or leaves
============================================  ======================================================
a negative size                               ``ValueError``
a size of ``sys.maxsize`` or more             ``OverflowError``
more than the machine has memory and swap     ``OSError``
no descriptor left                            ``OSError``, when one more arena is needed
the maker of a block dies                     the block stays with the children that have it
the last process that has a block dies        the kernel takes the memory back: it has no name
a process dies in here                        nothing: a block has no state outside its process
============================================  ======================================================
"""

from __future__ import annotations

import sys
from multiprocessing import reduction

from phalanx import _phalanx
from phalanx.synchronize import _placed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    _Piece: TypeAlias = "tuple[Arena, int, int]"

__all__ = ["BufferWrapper"]


class Arena:
    """``size`` bytes in a memory file; or those at a place that another process has passed on."""

    def __init__(self, size: int, fd: int = -1, *, place: Any = None) -> None:
        if fd != -1:
            place = _phalanx.Arena.adopt(fd), 0
        self.size = size
        self.buffer = _phalanx.Block(size, place)

    @property
    def fd(self) -> int:
        """The descriptor of the memory file that this is in."""
        arena, _ = self.buffer._place()
        return arena.fileno()


def reduce_arena(arena: Arena) -> tuple[Callable[..., Arena], tuple[int, Any]]:
    """How an arena is pickled."""
    return rebuild_arena, (arena.size, _placed(arena.buffer))


def rebuild_arena(size: int, place: Any) -> Arena:
    """The arena that another process has pickled."""
    return Arena(size, place=place)


reduction.register(Arena, reduce_arena)


class Heap:
    """Where blocks come from. The engine knows what is free; a heap has no state of its own."""

    def malloc(self, size: int) -> _Piece:
        """A block: its arena, and where in there it starts and stops.

        Raises:
            ValueError: ``size`` is negative.
            OverflowError: ``size`` is ``sys.maxsize`` or more.
            OSError: there is not so much memory, or no descriptor.
        """
        if size < 0:
            raise ValueError(f"Size {size} out of range")
        if sys.maxsize <= size:
            raise OverflowError(f"Size {size} too large")
        return Arena(size), 0, size

    def free(self, block: _Piece) -> None:
        """Do nothing: a block goes when nobody has its arena any more."""


class BufferWrapper:
    """A block of ``size`` bytes of zeros, which children inherit or are sent while they start.

    Raises:
        ValueError: ``size`` is negative.
        OverflowError: ``size`` is ``sys.maxsize`` or more.
        OSError: there is not so much memory, or no descriptor.
    """

    _heap = Heap()

    def __init__(self, size: int) -> None:
        self._state: tuple[Any, int] = BufferWrapper._heap.malloc(size), size

    def create_memoryview(self) -> memoryview:
        """The bytes: writable, shape ``(size,)``, format ``"B"``; no copy is made."""
        (arena, start, _), size = self._state
        return memoryview(arena.buffer)[start : start + size]

    def _block(self) -> _phalanx.Block:
        """The engine's block, which is this one's bytes and no more."""
        (arena, _, _), _ = self._state
        block: _phalanx.Block = arena.buffer
        return block
