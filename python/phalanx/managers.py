"""Managers: objects that live in a server process, and proxies for them.

As CPython 3.14, ``Lib/multiprocessing/managers.py``, whose classes are the bases of ours, so that
``isinstance`` says of ours what it says of those. The messages are the same, and either side may be
the standard library's. Our own are the server's loop and the way from a proxy to it: a server of
ours greets whoever asks for a connection with a word that the standard library does not look at,
and a client of ours on the same machine goes on through shared memory::

    client                                            server
    authentication, over the socket, as always
    (None, "accept_connection", (name,), {}) ------>
                                                <---- ("#RETURN", GREETING)
    (None, "#line", (), {}) ----------------------->
                                                <---- ("#RETURN", True)
    memory's descriptor --------------------------->  maps it
    (ident, method, args, kwds) ===================>  through the memory from here on

===================================  =========================================================
what happens                         what is seen
===================================  =========================================================
the server dies, or is shut down     EOFError or ConnectionError at once, for calls under way and
                                     later ones
a client dies, also inside a call    nothing: its thread in the server ends
the process that started it dies     the server ends, as a child of ours does
another key                          AuthenticationError
a method that is not exposed         AttributeError, as a `RemoteError` that shows the server's
                                     traceback
a result that cannot be pickled      `RemoteError`
an exception in a call (Ctrl-C)      it goes through; the next call makes a new connection
===================================  =========================================================
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import types
from multiprocessing import managers as _managers
from multiprocessing import process as _process
from multiprocessing import util
from queue import Queue as _Queue
from traceback import format_exc

from phalanx import _shortages, connection, pool, shared_memory
from phalanx._challenge import answer_challenge, deliver_challenge
from phalanx._phalanx import Line
from phalanx.context import _default_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_standard: Any = _managers
process: Any = _process

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

GREETING = "phalanx 1"

Token: Any = _standard.Token
RemoteError: Any = _standard.RemoteError
State: Any = _standard.State
ProcessLocalSet: Any = _standard.ProcessLocalSet
all_methods: Any = _standard.all_methods
public_methods: Any = _standard.public_methods
convert_to_error: Any = _standard.convert_to_error
dispatch: Any = _standard.dispatch
RebuildProxy: Any = _standard.RebuildProxy
_their_auto_proxy: Any = _standard.AutoProxy  # once installed, ours has its name


class _Listener(connection.Listener):
    """A listener for a server, which asks for the authkey before it reads anything."""

    _asks_itself = True


#: The listener and the client of each serializer.
listener_client: dict[str, tuple[Any, Any]] = {
    "pickle": (_Listener, connection.Client),
    "xmlrpclib": _standard.listener_client["xmlrpclib"],
}

#: In which form this thread pickles proxies: the standard library's to where that is.
_form = threading.local()


class Server(_standard.Server):  # type: ignore[misc]
    """What runs in the process of a manager: one thread for each connection."""

    public = [*_standard.Server.public]

    def __init__(self, registry: Any, address: Any, authkey: Any, serializer: str) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        listener, _client = listener_client[serializer]
        self.listener = listener(address=address, backlog=128)
        self.address = self.listener.address
        self.id_to_obj: dict[str, Any] = {"0": (None, ())}
        self.id_to_refcount: dict[str, int] = {}
        self.id_to_local_proxy_obj: dict[str, Any] = {}
        self.mutex = threading.Lock()
        self._greeting = GREETING if serializer == "pickle" else None

    def parent_ended(self) -> None:
        """Called before the server ends since the process that started it has."""

    def _handle_request(self, c: Any) -> None:
        """Ask a new connection for the key, and do the one thing that it asks for."""
        try:
            deliver_challenge(c, self.authkey)
            answer_challenge(c, self.authkey)
            _, name, args, kwds = c.recv()
            if name not in self.public:
                raise ValueError(f"{name!r} unrecognized")
            answer = "#RETURN", getattr(self, name)(c, *args, **kwds)
        except Exception:
            answer = "#TRACEBACK", format_exc()
        try:
            c.send(answer)
        except Exception as error:
            util.info("manager: an answer could not be sent: %r", error)

    def accept_connection(self, c: Any, name: str) -> None:
        """Serve a connection of its own for a thread of a client."""
        threading.current_thread().name = name
        c.send(("#RETURN", self._greeting))
        self.serve_client(c)

    def serve_client(self, conn: Any) -> None:
        """Answer requests until the other side ends."""
        standard = True  # the other side has not said that it has ours
        while not self.stop_event.is_set():
            try:
                request = conn.recv()
            except (EOFError, OSError):  # the other side ended, or died in the middle of a message
                break
            except Exception:
                answer = ("#TRACEBACK", format_exc())
            else:
                if type(request) is tuple and request[:2] in ((None, "#line"), (None, "#ours")):
                    conn, standard = _line(conn) if request[1] == "#line" else _plain(conn), False
                    continue
                answer = self._answer(conn, request)
            try:
                _form.standard = standard
                try:
                    conn.send(answer)
                except (EOFError, OSError):
                    raise
                except Exception:
                    conn.send(("#UNSERIALIZABLE", format_exc()))
                finally:
                    _form.standard = False
            except Exception as error:
                util.info("manager: an answer could not be sent: %r", error)
                conn.close()
                sys.exit(1)
            del answer, request  # until the next ones come
        util.debug("manager: %r is gone", threading.current_thread().name)
        conn.close()
        sys.exit(0)

    def _answer(self, conn: Any, request: Any) -> tuple[str, Any]:
        try:
            ident, methodname, args, kwds = request
            entry = self.id_to_obj.get(ident) or self.id_to_local_proxy_obj[ident]
            if methodname in entry[1]:
                answer = self._called(conn, entry, methodname, args, kwds)
            else:
                answer = self._fallback(conn, ident, entry, methodname, args, kwds)
        except Exception:
            answer = "#TRACEBACK", format_exc()
        return answer

    def _called(
        self, conn: Any, entry: Any, methodname: str, args: Any, kwds: Any
    ) -> tuple[str, Any]:
        obj, _exposed, typeids = entry
        function = getattr(obj, methodname)
        try:
            result = function(*args, **kwds)
        except Exception as error:
            return "#ERROR", error
        typeid = typeids and typeids.get(methodname)
        if not typeid:
            return "#RETURN", result
        ident, exposed = self.create(conn, typeid, result)
        return "#PROXY", (exposed, Token(typeid, self.address, ident))

    def _fallback(
        self, conn: Any, ident: str, entry: Any, methodname: str, args: Any, kwds: Any
    ) -> tuple[str, Any]:
        fallback = self.fallback_mapping.get(methodname)
        if fallback is None:
            raise AttributeError(
                f"method {methodname!r} of {type(entry[0])!r} object is not in exposed={entry[1]!r}"
            )
        return "#RETURN", fallback(self, conn, ident, entry[0], *args, **kwds)


def _plain(conn: Any) -> Any:
    """The connection as it is, with one of ours at its other end."""
    conn.send(("#RETURN", True))
    return conn


def _line(conn: Any) -> Any:
    """The connection that goes on where ``conn`` ends, through shared memory."""
    conn.send(("#RETURN", True))
    line = Line.accept(conn.fileno())
    conn.close()
    return line


class BaseManager(_standard.BaseManager):  # type: ignore[misc]
    """Starts a server process, or connects to one, and makes proxies for its objects."""

    _registry: dict[str, Any] = {}
    _Server = Server

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        super().__init__(address, authkey, serializer, ctx or _default_context.get_context())
        self._shutdown_timeout = shutdown_timeout
        self._use_our_connections()

    def _use_our_connections(self) -> None:
        self._Listener, self._Client = listener_client[self._serializer]

    def get_server(self) -> Any:
        """The server itself, to be run by ``serve_forever`` in this process."""
        super().get_server().listener.close()  # it says what is wrong with the state
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def start(self, initializer: Any = None, initargs: Any = ()) -> None:
        """Start a server process, in which ``initializer(*initargs)`` is called first.

        Raises:
            Exception: what went wrong in that process before it could be reached.
        """
        before = getattr(self, "_process", None)
        try:
            with _shortages.told("start a manager"):
                super().start(initializer, initargs)
        except Exception:
            server: Any = getattr(self, "_process", None)
            if server is not before and server.pid is not None:
                server.join(self._shutdown_timeout)  # it ends by itself, having said why
            raise

    def connect(self) -> None:
        """Connect to a server that runs elsewhere."""
        conn = self._Client(self._address, authkey=self._authkey)
        dispatch(conn, None, "dummy")
        self._state.value = State.STARTED

    @classmethod
    def _run_server(cls, *args: Any, **kwds: Any) -> None:
        try:
            parent = process.parent_process()
            if parent is not None:
                watch = threading.Thread(target=_end_with, args=(parent,), daemon=True)
                with _shortages.told("start a manager's thread"):
                    watch.start()
            super()._run_server(*args, **kwds)
        except Exception as error:
            # Whoever waits for the address is told, if it has not been sent yet.
            try:
                args[_WRITER].send(_Failure(error))
            except Exception:
                raise error from None
            sys.exit(1)

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., Any] | None = None,
        proxytype: Any = None,
        exposed: Iterable[str] | None = None,
        method_to_typeid: dict[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Have managers of this class make objects of the type ``typeid``."""
        proxytype = AutoProxy if proxytype is None else proxytype
        super().register(typeid, callable, proxytype, exposed, method_to_typeid, create_method)


#: The place of the connection that waits for the address, among the arguments of `_run_server`.
_WRITER = 4


class _Failure:
    """Raises an exception where it is received."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return _raise, (self._error,)


def _raise(error: Exception) -> None:
    raise error


def _end_with(parent: Any) -> None:
    """End this process, a manager's server, when the one that started it has ended."""
    parent.join()
    server = getattr(process.current_process(), "_manager_server", None)
    if server is not None:
        server.parent_ended()
    os._exit(1)


class BaseProxy(_standard.BaseProxy):  # type: ignore[misc]
    """What stands for an object in a manager's server.

    Each thread of a process has one connection to a server, for all its proxies.
    """

    def __init__(
        self,
        token: Any,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Any = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        super().__init__(token, serializer, manager, authkey, exposed, incref, manager_owned)
        self._Client = listener_client[serializer][1]

    def _connect(self) -> None:
        name = process.current_process().name
        if threading.current_thread().name != "MainThread":
            name += "|" + threading.current_thread().name
        self._tls.connection = _connected(self._Client, self._token.address, self._authkey, name)

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
        """Call a method of the object, and return a copy of the result.

        Raises:
            EOFError, ConnectionError: the server has ended.
            RemoteError: the server could not do it; with its traceback.
            Exception: what the method raised.
        """
        wire = getattr(self._tls, "connection", None)
        if wire is None or wire.closed:  # closed it is in a forked child, for one
            self._connect()
            wire = self._tls.connection
        try:
            answer = wire.call((self._id, methodname, args, kwds))
        except (EOFError, OSError):
            self._disconnect()
            raise
        if answer is None:  # a signal's handler, in the middle of a call of this thread
            answer = self._call_once(methodname, args, kwds)
        kind, result = answer
        if kind == "#RETURN":
            return result
        if kind == "#PROXY":
            return self._proxy_of(*result)
        try:
            raise convert_to_error(kind, result)
        finally:
            del result, answer  # the traceback holds this frame

    def _disconnect(self) -> None:
        wire = self._tls.__dict__.pop("connection", None)
        if wire is not None:
            wire.close()

    def _call_once(self, methodname: str, args: Any, kwds: Any) -> Any:
        wire = _connected(self._Client, self._token.address, self._authkey, "once")
        try:
            return wire.call((self._id, methodname, args, kwds))
        finally:
            wire.close()

    def _proxy_of(self, exposed: Any, token: Any) -> Any:
        proxytype = self._manager._registry[token.typeid][-1]
        token.address = self._token.address
        proxy = proxytype(
            token, self._serializer, manager=self._manager, authkey=self._authkey, exposed=exposed
        )
        conn = self._Client(token.address, authkey=self._authkey)
        try:
            dispatch(conn, None, "decref", (token.id,))
        finally:
            conn.close()
        return proxy

    def __reduce__(self) -> Any:
        rebuild, (function, *rest) = super().__reduce__()
        if getattr(_form, "standard", False) and hasattr(_standard, function.__name__):
            function = _Theirs(function.__name__)
        elif function is _their_auto_proxy:
            function = AutoProxy
        return rebuild, (function, *rest)


class _Theirs:
    """Arrives as what the standard library has by this name, also from where ours is installed."""

    def __init__(self, *path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        if not self._path:
            return importlib.import_module, ("multiprocessing.managers",)
        return getattr, (_Theirs(), *self._path)


class _Plain:
    """A connection that goes on as it was: to the standard library, or to another machine."""

    def __init__(self, conn: Any, standard: bool) -> None:
        self._conn = conn
        self._standard = standard
        self._busy = False
        self.closed = False

    def call(self, request: Any) -> Any:
        """The answer; ``None`` if this thread is in the middle of another call."""
        if self._busy:
            return None
        self._busy = True
        _form.standard = self._standard
        try:
            self._conn.send(request)
            _form.standard = False
            try:
                return self._conn.recv()
            except BaseException:
                self.close()  # the answer may come yet, and is not that of the next call
                raise
        finally:
            self._busy = _form.standard = False

    def close(self) -> None:
        """Let go of the connection."""
        self.closed = True
        self._conn.close()


def _connected(client: Any, address: Any, authkey: bytes, name: str) -> Any:
    conn = client(address, authkey=authkey)
    try:
        standard = dispatch(conn, None, "accept_connection", (name,)) != GREETING
        # Only a socket of the machine's own takes descriptors along.
        local = isinstance(address, str | bytes)
        if standard or not dispatch(conn, None, "#line" if local else "#ours") or not local:
            return _Plain(conn, standard)
        line = Line.offer(conn.fileno())
    except BaseException:
        conn.close()
        raise
    conn.close()
    return line


_made: dict[tuple[str, tuple[str, ...]], Any] = {}


def MakeProxyType(name: str, exposed: Iterable[str]) -> Any:
    """The type of proxies with these methods."""
    key = name, tuple(exposed)
    if key not in _made:
        body: dict[str, Any] = {each: _method(each) for each in key[1]}
        made = type(name, (BaseProxy,), {**body, "_exposed_": key[1], "__module__": __name__})
        _made[key] = made
    return _made[key]


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, **kwds: Any) -> Any:
        return self._callmethod(name, args, kwds)

    method.__name__ = method.__qualname__ = name
    return method


def AutoProxy(
    token: Any,
    serializer: str,
    manager: Any = None,
    authkey: bytes | None = None,
    exposed: Any = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """A proxy with the public methods of the object, asked of the server if need be."""
    if authkey is None:
        authkey = manager._authkey if manager is not None else process.current_process().authkey
    if exposed is None:
        conn = listener_client[serializer][1](token.address, authkey=authkey)
        try:
            exposed = dispatch(conn, None, "get_methods", (token,))
        finally:
            conn.close()
    kind = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = kind(
        token,
        serializer,
        manager=manager,
        authkey=authkey,
        incref=incref,
        manager_owned=manager_owned,
    )
    proxy._isauto = True
    return proxy


class Namespace(_standard.Namespace):  # type: ignore[misc]
    """Attributes, to be shared."""


class Value(_standard.Value):  # type: ignore[misc]
    """A value, to be shared."""


def Array(typecode: str, sequence: Iterable[Any], lock: Any = True) -> Any:
    """An ``array.array``, to be shared."""
    import array

    return array.array(typecode, sequence)


class IteratorProxy(BaseProxy, _standard.IteratorProxy):  # type: ignore[misc]
    """A proxy for an iterator."""


class AcquirerProxy(BaseProxy, _standard.AcquirerProxy):  # type: ignore[misc]
    """A proxy for a lock or a semaphore."""

    _exposed_: tuple[str, ...] = ("acquire", "release", "locked")

    def locked(self) -> Any:
        """Whether it is held (CPython 3.14)."""
        return self._callmethod("locked")


class ConditionProxy(AcquirerProxy, _standard.ConditionProxy):  # type: ignore[misc]
    """A proxy for a condition variable."""

    _exposed_ = ("acquire", "release", "locked", "wait", "notify", "notify_all")


class EventProxy(BaseProxy, _standard.EventProxy):  # type: ignore[misc]
    """A proxy for a flag."""


class BarrierProxy(BaseProxy, _standard.BarrierProxy):  # type: ignore[misc]
    """A proxy for a barrier."""


class NamespaceProxy(BaseProxy, _standard.NamespaceProxy):  # type: ignore[misc]
    """A proxy for a `Namespace`: its attributes are those without an underscore."""


class ValueProxy(BaseProxy, _standard.ValueProxy):  # type: ignore[misc]
    """A proxy for a `Value`."""


def _in_place(name: str) -> Callable[..., Any]:
    def method(self: Any, other: Any, /) -> Any:
        self._callmethod(name, (other,))
        return self

    method.__name__ = method.__qualname__ = name
    return method


BaseListProxy = MakeProxyType(
    "BaseListProxy",
    (
        *("__add__", "__contains__", "__delitem__", "__getitem__", "__imul__", "__len__"),
        *("__mul__", "__reversed__", "__rmul__", "__setitem__", "append", "clear", "copy"),
        *("count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
    ),
)


class ListProxy(BaseListProxy, _standard.ListProxy):  # type: ignore[misc, valid-type]
    """A proxy for a list."""

    __iadd__ = _standard.ListProxy.__iadd__
    __imul__ = _standard.ListProxy.__imul__
    __class_getitem__: Any = classmethod(types.GenericAlias)


_BaseDictProxy = MakeProxyType(
    "_BaseDictProxy",
    (
        *("__contains__", "__delitem__", "__getitem__", "__ior__", "__iter__", "__len__"),
        *("__or__", "__reversed__", "__ror__", "__setitem__", "clear", "copy", "fromkeys", "get"),
        *("items", "keys", "pop", "popitem", "setdefault", "update", "values"),
    ),
)


class DictProxy(_BaseDictProxy, _standard.DictProxy):  # type: ignore[misc, valid-type]
    """A proxy for a dict."""

    _method_to_typeid_ = {"__iter__": "Iterator"}
    __ior__ = _in_place("__ior__")
    __class_getitem__: Any = classmethod(types.GenericAlias)


_BaseSetProxy = MakeProxyType(
    "_BaseSetProxy",
    (
        *("__and__", "__contains__", "__ge__", "__gt__", "__iand__", "__ior__", "__isub__"),
        *("__iter__", "__ixor__", "__le__", "__len__", "__lt__", "__or__", "__rand__", "__ror__"),
        *("__rsub__", "__rxor__", "__sub__", "__xor__", "add", "clear", "copy", "difference"),
        *("difference_update", "discard", "intersection", "intersection_update", "isdisjoint"),
        *("issubset", "issuperset", "pop", "remove", "symmetric_difference"),
        *("symmetric_difference_update", "union", "update"),
    ),
)


class SetProxy(_BaseSetProxy):  # type: ignore[misc, valid-type]
    """A proxy for a set (CPython 3.14)."""

    _method_to_typeid_ = {"__iter__": "Iterator"}
    __iand__ = _in_place("__iand__")
    __ior__ = _in_place("__ior__")
    __isub__ = _in_place("__isub__")
    __ixor__ = _in_place("__ixor__")
    __class_getitem__: Any = classmethod(types.GenericAlias)


ArrayProxy = MakeProxyType("ArrayProxy", ("__len__", "__getitem__", "__setitem__"))

BasePoolProxy = MakeProxyType(
    "BasePoolProxy",
    (
        *("apply", "apply_async", "close", "imap", "imap_unordered", "join"),
        *("map", "map_async", "starmap", "starmap_async", "terminate"),
    ),
)


class PoolProxy(BasePoolProxy, _standard.PoolProxy):  # type: ignore[misc, valid-type]
    """A proxy for a pool."""

    _method_to_typeid_ = {
        "apply_async": "AsyncResult",
        "map_async": "AsyncResult",
        "starmap_async": "AsyncResult",
        "imap": "Iterator",
        "imap_unordered": "Iterator",
    }


class SyncManager(BaseManager, _standard.SyncManager):  # type: ignore[misc]
    """A manager of what threads share: containers, queues, locks, values, pools.

    `multiprocessing.Manager` makes one that is started.
    """


for _typeid, _callable, _proxytype in (
    ("Queue", _Queue, None),
    ("JoinableQueue", _Queue, None),
    ("Event", threading.Event, EventProxy),
    ("Lock", threading.Lock, AcquirerProxy),
    ("RLock", threading.RLock, AcquirerProxy),
    ("Semaphore", threading.Semaphore, AcquirerProxy),
    ("BoundedSemaphore", threading.BoundedSemaphore, AcquirerProxy),
    ("Condition", threading.Condition, ConditionProxy),
    ("Barrier", threading.Barrier, BarrierProxy),
    ("Pool", pool.Pool, PoolProxy),
    ("list", list, ListProxy),
    ("dict", dict, DictProxy),
    ("set", set, SetProxy),
    ("Value", Value, ValueProxy),
    ("Array", Array, ArrayProxy),
    ("Namespace", Namespace, NamespaceProxy),
):
    SyncManager.register(_typeid, _callable, _proxytype)
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)
del _typeid, _callable, _proxytype


class SharedMemoryServer(_standard.SharedMemoryServer, Server):  # type: ignore[misc]
    """A server that removes the blocks of shared memory it was told of when it ends."""

    def __init__(self, registry: Any, address: Any, authkey: Any, serializer: str) -> None:
        super().__init__(registry, address, authkey, serializer)
        self.listener.close()
        Server.__init__(self, registry, address, authkey, serializer)

    def parent_ended(self) -> None:
        """Remove the blocks: nobody else will."""
        self.shared_memory_context.unlink()


class SharedMemoryManager(_standard.SharedMemoryManager, BaseManager):  # type: ignore[misc]
    """A manager of blocks of shared memory: they are removed when it is shut down."""

    _Server = SharedMemoryServer
    register = BaseManager.register

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        super().__init__(address, authkey, serializer, ctx or _default_context.get_context())
        self._shutdown_timeout = shutdown_timeout
        self._use_our_connections()

    def SharedMemory(self, size: int) -> Any:
        """A new block of ``size`` bytes."""
        block = shared_memory.SharedMemory(None, create=True, size=size)
        return self._tracked(block, block)

    def ShareableList(self, sequence: Iterable[Any]) -> Any:
        """A new list of values in a block of their own."""
        values = shared_memory.ShareableList(sequence)
        return self._tracked(values, values.shm)

    def _tracked(self, made: Any, block: Any) -> Any:
        try:
            with self._Client(self._address, authkey=self._authkey) as conn:
                dispatch(conn, None, "track_segment", (block.name,))
        except BaseException:
            block.close()
            block.unlink()
            raise
        return made
