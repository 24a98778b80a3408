"""Shared memory that has a name, and lists in it.

As CPython 3.13, ``Lib/multiprocessing/shared_memory.py``: with ``track=`` on every Python. Names
are those of shm_open(3), files in ``/dev/shm``: any program finds the memory by its name.

The memory of a block is allocated when the block is made: where there is not enough, that is an
``OSError`` then, and not the end of whichever process (SIGBUS) first touches what is missing.

A name stays until somebody removes it. With ``track=True`` the standard library's resource tracker
does, if nobody has by the time that the last process ends which shares the tracker. A program and
all its children share one, however they end. With ``track=False`` only :meth:`unlink` does.

==================================================  ================================================
what                                                gets, or leaves
==================================================  ================================================
a negative size; no size, or 0, with ``create``     ``ValueError``
no name without ``create``                          ``ValueError``
a size that is no int, a name that is no str        ``TypeError``, and no block
a name with a zero character                        ``ValueError``
an empty name, one with a slash or too long         ``OSError``
a name that is taken (``create``)                   ``FileExistsError``
a name that nobody has (attach, :meth:`unlink`)     ``FileNotFoundError``
more than ``/dev/shm`` has left                     ``OSError`` (``ENOSPC``), and no block
``close`` while somebody has a view of ``buf``      ``BufferError``; all is as before
``resize`` to less than there is                    ``ValueError``: others would die of what is gone
``resize`` to more than ``/dev/shm`` has left       ``OSError`` (``ENOSPC``); all is as before
``resize`` while somebody has a view of ``buf``     nothing; that is of the first part, as before
no ``close``, and views that outlive the object     nothing; the memory stays as long as the views
the creator dies, at any line, others go on         the block stays with its name
the last process of the program dies                the tracker removes the name
another program ends that attached with ``track``   its tracker removes the name
a process dies inside ``ShareableList`` writes      that item may have its old type and new bytes
==================================================  ================================================
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]
import errno
import mmap
import operator
import os
import secrets
import struct
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing import shared_memory as _standard
from types import GenericAlias

from phalanx import _shortages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, ClassVar

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_O_CREX = os.O_CREAT | os.O_EXCL
_SHM_SAFE_NAME_LENGTH = 14  # FreeBSD takes no more
_SHM_NAME_PREFIX = "/psm_"

#: Bytes that are allocated at once. A signal that arrives meanwhile undoes what the call has done.
_PIECE = 16 << 20


def _make_filename() -> str:
    """A name that is hardly taken."""
    digits = _SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)
    return _SHM_NAME_PREFIX + secrets.token_hex(digits // 2)


def _check(name: str) -> None:
    if "\0" in name:  # Python 3.11 and 3.12 take what is in front of it
        raise ValueError("embedded null character")


def _exists(name: str) -> bool:
    try:
        os.close(_posixshmem.shm_open(name, os.O_RDONLY, mode=0))
    except FileNotFoundError:
        return False
    except OSError:  # not for us to open, or no name at all: whoever opens it will see
        return False
    return True


def _allocate(fd: int, size: int, has: int = 0) -> None:
    """Give the file all the memory for its size, if it ``has`` less."""
    system = os.fstatvfs(fd)
    if size - has > system.f_bavail * system.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for start in range(has, size, _PIECE):
        os.posix_fallocate(fd, start, min(_PIECE, size - start))


class SharedMemory(_standard.SharedMemory):
    """A block of shared memory with a name.

    With ``create`` a new one of ``size`` bytes of zeros, under ``name`` or a name that is made up.
    Otherwise the one of that name; its size is its own, whatever ``size`` says. ``track`` says
    whether the resource tracker is to remove the name in the end: see this module.

    Raises:
        ValueError: ``size`` is negative, or 0 for a new block; there is no name to look for.
        FileExistsError: the name of a new block is taken.
        FileNotFoundError: there is no block of that name.
        OSError: there is not enough memory, or the name is none.
    """

    _name: Any = None
    _fd = -1
    _mmap: Any = None
    _buf: Any = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True

    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None:
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        size = operator.index(size)
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = track
        if name is not None:
            self._open("/" + name if self._prepend_leading_slash else name, create, size)
            return
        while True:
            with suppress(FileExistsError):
                self._open(_make_filename(), create, size)
                return

    def _open(self, name: str, create: bool, size: int) -> None:
        doing = f"make a block of {size} bytes" if create else "open a block"
        with _shortages.told(f"{doing} of shared memory"):
            self._open_or_not(name, create, size)

    def _open_or_not(self, name: str, create: bool, size: int) -> None:
        _check(name)
        if create and _exists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        # The tracker knows a new name before there is a block of it: whenever we are killed, it
        # can remove the block. A name that two processes of one program create at once is known to
        # it by the first, and forgotten with the second's failure; hence the look above.
        early = create and self._track
        if early:
            resource_tracker.register(name, "shared_memory")
        try:
            self._fd = _posixshmem.shm_open(name, self._flags, mode=self._mode)
        except BaseException:
            if early:
                resource_tracker.unregister(name, "shared_memory")
            raise
        self._name = name
        try:
            if create:
                os.ftruncate(self._fd, size)
                _allocate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
        except BaseException as error:
            if create:
                _posixshmem.shm_unlink(name)
                if early:
                    resource_tracker.unregister(name, "shared_memory")
            os.close(self._fd)
            self._fd = -1
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                error.strerror = os.strerror(errno.ENOSPC)
                error.filename = name
            raise
        if self._track and not early:
            resource_tracker.register(name, "shared_memory")
        self._buf = memoryview(self._mmap)

    def __del__(self) -> None:
        try:
            self.close()
        except BufferError:  # the mapping is gone when the last view of it is
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        except OSError:
            pass

    def __reduce__(self) -> Any:
        attach = self.__class__ if self._track else partial(self.__class__, track=False)
        return attach, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self) -> Any:
        """The block's bytes: writable, shape ``(size,)``, format ``"B"``; no copy is made.

        ``None`` when it is closed.
        """
        return self._buf

    @property
    def name(self) -> Any:
        """The name by which others find the block."""
        if self._prepend_leading_slash and self._name and self._name.startswith("/"):
            return self._name[1:]
        return self._name

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._size

    def close(self) -> None:
        """Let go of the block, which stays; a second time does nothing.

        Raises:
            BufferError: somebody has a view of ``buf``.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._mmap is not None:
            self._mmap.close()
            self._mmap = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def resize(self, size: int | None = None) -> None:
        """Make the block larger, where it is: with the same name and content, and zeros behind it.

        ``buf`` is a new view then; those of the old one stay, and see the same bytes. Whoever else
        has the block has as much of it as before, until this is called there, too: without a
        ``size``, the block is as large as somebody has made it.

        Raises:
            ValueError: ``size`` is less than the block has, or the block is closed.
            OSError: there is not enough memory.
        """
        if self._fd < 0:
            raise ValueError(f"{self!r} is closed")
        has = os.fstat(self._fd).st_size
        size = has if size is None else operator.index(size)
        if size < has:
            raise ValueError(f"a block of {has} bytes cannot be cut to {size}: others may use them")
        with _shortages.told(f"make a block of shared memory {size} bytes large"):
            _allocate(self._fd, size, has)
            larger = mmap.mmap(self._fd, size)
        before, self._buf = self._buf, memoryview(larger)
        self._mmap, self._size = larger, size
        with suppress(BufferError):  # else it goes with the last view of it
            before.release()

    def unlink(self) -> None:
        """Remove the name: once, by whichever process. Who has the block keeps it.

        Raises:
            FileNotFoundError: somebody has removed it.
        """
        if self._name:
            _check(self._name)
            _posixshmem.shm_unlink(self._name)
            if self._track:
                resource_tracker.unregister(self._name, "shared_memory")


_encoding = "utf8"
_WORD = struct.Struct("q")
_FORMAT = struct.Struct("8s")


def _as_is(value: Any) -> Any:
    return value


def _as_str(value: bytes) -> str:
    return value.rstrip(b"\0").decode(_encoding)


def _as_bytes(value: bytes) -> bytes:
    return value.rstrip(b"\0")


def _as_none(_value: Any) -> None:
    return None


class ShareableList:
    """A list of a fixed length in a block of shared memory, with a name.

    Its items are ``int`` of 64 bits, ``float``, ``bool``, ``str``, ``bytes`` and ``None``; one can
    be replaced by another that needs no more room. ``str`` and ``bytes`` lose zeros at their end.
    There is no lock: who reads while another writes can see half of it.

    The list of ``sequence``, in a new block; without it, the list that is in the block ``name``.

    ========  ======================================================
    bytes     what is there
    ========  ======================================================
    8         N, the number of items
    8 N + 8   where each item starts, and the last ends, in the data
    K         the data
    8 N       the format of each, as of :mod:`struct`
    N         what each is made into: see ``_back_transforms_mapping``
    ========  ======================================================

    Raises:
        KeyError: an item is of another type.
        struct.error: an ``int`` has more than 64 bits.
        ValueError: there is no list in the block.
    """

    _types_mapping: ClassVar[dict[type, str]] = {
        int: "q",
        float: "d",
        bool: "xxxxxxx?",
        str: "%ds",
        bytes: "%ds",
        type(None): "xxxxxx?x",
    }
    _alignment = 8
    _back_transforms_mapping: ClassVar[dict[int, Any]] = {
        0: _as_is,
        1: _as_str,
        2: _as_bytes,
        3: _as_none,
    }

    def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None:
        if sequence is None and name is not None:
            self.shm = SharedMemory(name)
            self._attach()
            return
        # All is packed before there is a block, so that a bad item leaves none.
        items = [self._pack(item) for item in sequence or ()]
        offsets, data = [0], b""
        for _, packed in items:
            offsets.append(offsets[-1] + len(packed))
        data = b"".join(packed for _, packed in items)
        formats = b"".join(_FORMAT.pack(format_.encode()) for format_, _ in items)
        codes = bytes(self._extract_recreation_code(item) for item in sequence or ())
        count = len(items)
        content = struct.pack(f"{count + 2}q", count, *offsets) + data + formats + codes
        self.shm = SharedMemory(name, create=True, size=len(content))
        self.shm.buf[: len(content)] = content
        self._list_len = count
        self._allocated_offsets = offsets

    def _attach(self) -> None:
        size = self.shm.size
        count = _WORD.unpack_from(self.shm.buf)[0] if size >= _WORD.size else -1
        offsets: list[int] = []
        # There are the count, the offsets and the end; of each item, a format and a code, at least.
        if count >= 0 and (count + 2) * 8 + count * 9 <= size:
            offsets = list(struct.unpack_from(f"{count + 1}q", self.shm.buf, _WORD.size))
        fits = offsets and offsets[0] == 0 and offsets == sorted(offsets)
        if not fits or (count + 2) * 8 + offsets[-1] + count * 9 > size:
            name = self.shm.name
            self.shm.close()
            raise ValueError(f"there is no ShareableList in the block {name!r}")
        self._list_len = count
        self._allocated_offsets = offsets

    @classmethod
    def _pack(cls, item: Any) -> tuple[str, bytes]:
        """An item's format and its bytes."""
        try:
            format_ = cls._types_mapping[type(item)]
        except KeyError:
            what = type(item).__name__
            raise KeyError(f"a ShareableList holds no {what}, as {item!r} is one") from None
        encoded = item.encode(_encoding) if isinstance(item, str) else item
        if isinstance(encoded, bytes):
            # One character more than there are, as CPython has it; of some it takes several bytes.
            words = max(len(item) // cls._alignment + 1, -(-len(encoded) // cls._alignment))
            format_ %= words * cls._alignment
        if len(format_) > _FORMAT.size:
            raise ValueError("an item is too long for a ShareableList")
        return format_, struct.pack(format_, encoded)

    @staticmethod
    def _extract_recreation_code(value: Any) -> int:
        """The key in ``_back_transforms_mapping`` for a value."""
        if isinstance(value, str):
            return 1
        if isinstance(value, bytes):
            return 2
        return 3 if value is None else 0

    def _position(self, position: int, message: str) -> int:
        found = position + self._list_len if position < 0 else position
        if not 0 <= found < self._list_len:
            raise IndexError(message)
        return found

    def _get_packing_format(self, position: int) -> str:
        """The format of an item, as of :mod:`struct`."""
        position = self._position(position, "Requested position out of range.")
        (packed,) = _FORMAT.unpack_from(self.shm.buf, self._offset_packing_formats + position * 8)
        format_: str = packed.rstrip(b"\0").decode(_encoding)
        return format_

    def _get_back_transform(self, position: int) -> Callable[[Any], Any]:
        """What makes an item of what was unpacked."""
        position = self._position(position, "Requested position out of range.")
        code = self.shm.buf[self._offset_back_transform_codes + position]
        transform: Callable[[Any], Any] = self._back_transforms_mapping[code]
        return transform

    def __getitem__(self, position: int) -> Any:
        position = self._position(position, "index out of range")
        offset = self._offset_data_start + self._allocated_offsets[position]
        (packed,) = struct.unpack_from(self._get_packing_format(position), self.shm.buf, offset)
        return self._get_back_transform(position)(packed)

    def __setitem__(self, position: int, value: Any) -> None:
        position = self._position(position, "assignment index out of range")
        start, end = self._allocated_offsets[position : position + 2]
        format_, packed = self._pack(value)
        if isinstance(value, (str, bytes)):
            encoded = value.encode(_encoding) if isinstance(value, str) else value
            if len(encoded) > end - start:
                raise ValueError("bytes/str item exceeds available storage")
            current = self._get_packing_format(position)
            format_ = current if current[-1] == "s" else f"{end - start}s"
            packed = struct.pack(format_, encoded)
        buf, offset = self.shm.buf, self._offset_data_start + start
        _FORMAT.pack_into(buf, self._offset_packing_formats + position * 8, format_.encode())
        buf[self._offset_back_transform_codes + position] = self._extract_recreation_code(value)
        buf[offset : offset + len(packed)] = packed

    def __reduce__(self) -> Any:
        return partial(self.__class__, name=self.shm.name), ()

    def __len__(self) -> int:
        count: int = _WORD.unpack_from(self.shm.buf)[0]
        return count

    def __iter__(self) -> Iterator[Any]:
        return (self[position] for position in range(self._list_len))

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self) -> str:
        """The formats of all items, as of :mod:`struct`."""
        return "".join(self._get_packing_format(i) for i in range(self._list_len))

    @property
    def _offset_data_start(self) -> int:
        return (self._list_len + 2) * 8

    @property
    def _offset_packing_formats(self) -> int:
        return self._offset_data_start + self._allocated_offsets[-1]

    @property
    def _offset_back_transform_codes(self) -> int:
        return self._offset_packing_formats + self._list_len * 8

    def count(self, value: Any) -> int:
        """How many items are equal to ``value``."""
        return sum(value == item for item in self)

    def index(self, value: Any) -> int:
        """The position of the first item that is equal to ``value``.

        Raises:
            ValueError: there is none.
        """
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f"{value!r} not in this container")

    __class_getitem__: Any = classmethod(GenericAlias)
