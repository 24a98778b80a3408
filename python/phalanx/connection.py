"""Messages between processes, over pipes and sockets, on CPython's wire.

As CPython 3.13, ``Lib/multiprocessing/connection.py``. What moves the bytes is the engine's; the
challenges that both sides of a connection answer mean the same there. Every `Connection` is also
one of the standard library's, for those who ask.

What each wrong argument gets
    ===================================================== =========================================
    a handle that is no integer; negative                 ``TypeError``; ``ValueError``
    neither readable nor writable                         ``ValueError``
    any call when closed                                  ``OSError("handle is closed")``
    sending on a read end, receiving on a write end       ``OSError``: connection is read-only, ...
    an object that cannot be pickled                      what pickling raises; nothing is sent
    ``send_bytes`` of no bytes, or not contiguous         ``TypeError``; ``BufferError``
    an offset or a size outside of the buffer             ``ValueError``
    a negative ``maxlength``                              ``ValueError``
    a message longer than ``maxlength``                   ``OSError("bad message length")``, and
                                                          nothing is received any more
    ``recv_bytes_into`` with too little room              ``BufferTooShort`` with the message in it
    ... into what is read-only                            ``TypeError``; the message stays
    a descriptor that is not open                         ``OSError`` (``EBADF``)
    a timeout that is not a number                        ``TypeError``, ``ValueError`` for nan
    `wait` for an object without a descriptor             ``ValueError``
    a family, or a pipe's address, of another system      ``ValueError``
    an address that is neither tuple nor text             ``TypeError``
    an authkey that is not bytes                          ``TypeError``
    the wrong authkey                                     ``AuthenticationError`` on both sides
    ===================================================== =========================================

What happens at a death
    ===================================================== =========================================
    the other end's last process dies between messages    ``EOFError``, after what it had sent
    ... in the middle of a message                        at once an exception that is an
                                                          ``EOFError`` and, as in CPython, an
                                                          ``OSError``
    ... with messages of ours unread                      ``EOFError`` (CPython:
                                                          ``ConnectionResetError``)
    ... while we send, or before                          ``BrokenPipeError``
    ... while we `poll` or `wait`                         it is ready at once
    ... before or during the challenge                    ``EOFError`` or ``BrokenPipeError``
    the listener's process dies                           ``Client``: ``ConnectionRefusedError``
    a signal handler raises inside of a message           that; then ``OSError`` for each call in
                                                          that direction, since the borders are lost
    a process is forked in the middle of a call           its copy of the end works
    ===================================================== =========================================
"""

from __future__ import annotations

import os
import socket
from multiprocessing import connection as _standard
from multiprocessing import reduction, util
from multiprocessing.connection import (  # type: ignore[attr-defined]
    ConnectionWrapper,
    _validate_family,
    address_type,
    arbitrary_address,
    default_family,
)

from phalanx import _phalanx, _shortages
from phalanx._challenge import answer_challenge, deliver_challenge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Self

__all__ = ["Client", "Listener", "Pipe", "wait"]

_ForkingPickler = reduction.ForkingPickler


def __getattr__(name: str) -> Any:
    # What is not ours, private names above all, differs from one Python to the next.
    return getattr(_standard, name)


class _EndInMessage(EOFError, OSError):
    """The other end was closed in the middle of a message. CPython raises ``OSError`` there."""


class Connection(_phalanx.Connection, _standard.Connection):
    """One end of a pipe, or of a connection between sockets.

    ``handle`` is a descriptor, which the connection owns from now on. ``readable`` and
    ``writable`` say which directions may be used. For one thread at a time in each direction;
    its descriptor may be shared with other processes, which then take messages in turn only if
    they agree on one.
    """

    def __reduce__(self) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
        return reduce_connection(self)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """Two connected ends; unless ``duplex``, the first only receives and the second only sends."""
    one, other = _phalanx.stream_pair()
    return Connection(one, writable=duplex), Connection(other, readable=duplex)


def wait(object_list: Iterable[Any], timeout: float | None = None) -> list[Any]:
    """Those of the objects that are ready to be read, in their order, once there is one.

    An object is a descriptor or has a ``fileno()``: a connection, a socket, the ``sentinel`` of a
    process. What is closed at the other end is ready. ``timeout`` is in seconds, and ``None`` for
    ever; when it is over, or there is nothing to wait for, the list is empty.

    Raises:
        ValueError: there is something without a descriptor.
        OSError: a connection is closed.
    """
    objects = list(object_list)
    ready = _phalanx.wait_readable([_descriptor(each) for each in objects], timeout)
    return [objects[place] for place in ready]


def _descriptor(each: Any) -> int:
    try:
        number = each if isinstance(each, int) else int(each.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {each!r}") from None
    if number < 0:
        raise ValueError(f"Invalid file descriptor: {number}")
    return number


class Listener:
    """Waits for connections, at a socket that is bound to ``address``.

    An ``address`` is a tuple of host and port (``AF_INET``) or a path (``AF_UNIX``, or an abstract
    one that begins with a zero); by default it is a fresh one of ``family``. ``backlog``
    connections may wait to be accepted. With an ``authkey``, each side has to show the other that
    it has it; without one, others than this machine's processes are not let in, since whoever is
    may have anything unpickled.

    Raises:
        ValueError: the family is not known, or the address can be reached from other machines and
            there is no authkey.
        TypeError: the authkey is not bytes, or the address neither tuple nor text.
        OSError: the address is in use, or is not ours.
    """

    #: Whoever accepts connections asks for the authkey by himself.
    _asks_itself = False

    def __init__(
        self,
        address: Any = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
    ) -> None:
        self._listener: SocketListener | None = None
        _check_authkey(authkey)
        family = family or (address and address_type(address)) or default_family
        _validate_family(family)
        with _shortages.told("make a listener"):
            self._listener = SocketListener(address or arbitrary_address(family), family, backlog)
        self._authkey = authkey
        if authkey is None and not (self._asks_itself or self._listener.is_local()):
            reached = self._listener._address
            self.close()
            raise ValueError(
                f"a listener at {reached!r} without an authkey would unpickle whatever other "
                "machines send: give it an authkey, or listen at 'localhost'"
            )

    def accept(self) -> Any:
        """Wait for a connection, and return it.

        Raises:
            OSError: the listener is closed.
            AuthenticationError: the other side has another key.
            EOFError: it has gone before it could show its key.
        """
        connection = self._open().accept()
        if self._authkey is not None:
            with _closed_on_failure(connection):
                deliver_challenge(connection, self._authkey)
                answer_challenge(connection, self._authkey)
        return connection

    def close(self) -> None:
        """Accept no more, and remove the socket's path. Connections stay."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    @property
    def address(self) -> Any:
        """Where the listener is to be reached."""
        return self._open()._address

    @property
    def last_accepted(self) -> Any:
        """Where the last connection came from; ``None`` before the first."""
        return self._open()._last_accepted

    def _open(self) -> SocketListener:
        if self._listener is None:
            raise OSError("listener is closed")
        return self._listener

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()


def Client(address: Any, family: str | None = None, authkey: bytes | None = None) -> Connection:
    """A connection to the `Listener` at ``address``.

    Raises:
        ValueError: the family is not known.
        TypeError: the authkey is not bytes, or the address neither tuple nor text.
        OSError: nobody listens there; a ``ConnectionRefusedError`` as a rule.
        AuthenticationError: the other side has another key.
        EOFError: it has gone before it could show its key.
    """
    _check_authkey(authkey)
    _validate_family(family or address_type(address))
    connection = SocketClient(address)
    if authkey is not None:
        with _closed_on_failure(connection):
            answer_challenge(connection, authkey)
            deliver_challenge(connection, authkey)
    return connection


def _check_authkey(authkey: bytes | None) -> None:
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError("authkey should be a byte string")


class _closed_on_failure:
    """Close a connection whose challenge has failed: the other side waits for an answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if exc_type is not None:
            self._connection.close()


class SocketListener:
    """A socket that is bound to an address, and listening."""

    def __init__(self, address: Any, family: str, backlog: int = 1) -> None:
        self._unlink: Callable[[], object] | None = None
        self._socket = socket.socket(getattr(socket, family))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setblocking(True)
            self._socket.bind(address)
            self._socket.listen(backlog)
            self._address = self._socket.getsockname()
        except BaseException:
            self._socket.close()
            raise
        self._family = family
        self._last_accepted: Any = None
        if family == "AF_UNIX" and not util.is_abstract_socket_namespace(address):
            self._unlink = util.Finalize(self, os.unlink, args=(address,), exitpriority=0)

    def is_local(self) -> bool:
        """Is it out of reach of other machines?"""
        if self._family == "AF_UNIX":
            return True
        host = str(self._address[0])
        return host.startswith("127.") or host == "::1"

    def accept(self) -> Connection:
        """Wait for a connection."""
        wait([self._socket])  # a signal that comes right before a wait of the socket's is not seen
        accepted, self._last_accepted = self._socket.accept()
        return _connection_of(accepted)

    def close(self) -> None:
        """Accept no more, and remove the socket's path."""
        try:
            self._socket.close()
        finally:
            unlink, self._unlink = self._unlink, None
            if unlink is not None:
                unlink()


def SocketClient(address: Any) -> Connection:
    """A connection to a `SocketListener`."""
    with socket.socket(getattr(socket, address_type(address))) as dialling:
        dialling.connect(address)
        return _connection_of(dialling)


def _connection_of(connected: socket.socket) -> Connection:
    connected.setblocking(True)
    if connected.family != socket.AF_UNIX:
        # A message goes out in one piece, so there is nothing to be collected first.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(connected.detach())


def _xml_dumps(obj: Any) -> bytes:
    import xmlrpc.client

    text = xmlrpc.client.dumps((obj,), None, None, None, True)
    return text.encode("utf-8")


def _xml_loads(data: bytes) -> Any:
    import xmlrpc.client

    (obj,), _method = xmlrpc.client.loads(data.decode("utf-8"))
    return obj


class XmlListener(Listener):
    """A `Listener` whose connections write objects as XML-RPC does."""

    def accept(self) -> Any:
        """Wait for a connection, and return it in its wrapper."""
        return ConnectionWrapper(super().accept(), _xml_dumps, _xml_loads)


def XmlClient(*args: Any, **kwds: Any) -> Any:
    """A connection to an `XmlListener`."""
    return ConnectionWrapper(Client(*args, **kwds), _xml_dumps, _xml_loads)


def reduce_connection(
    conn: Connection,
) -> tuple[Callable[..., Connection], tuple[Any, bool, bool]]:
    """How a connection is pickled: its descriptor travels, and is open on both sides."""
    return rebuild_connection, (reduction.DupFd(conn.fileno()), conn.readable, conn.writable)


def rebuild_connection(df: Any, readable: bool, writable: bool) -> Connection:
    """The connection of a pickle."""
    return Connection(df.detach(), readable, writable)


reduction.register(Connection, reduce_connection)
