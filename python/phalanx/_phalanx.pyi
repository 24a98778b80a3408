"""The engine, as Python sees it."""

from collections.abc import Callable, Iterable, Sequence
from types import GenericAlias
from typing import Any, Self, TypeAlias, final

from typing_extensions import disjoint_base

__all__ = [
    "Arena",
    "AsyncResult",
    "Block",
    "Cell",
    "Cells",
    "Child",
    "Connection",
    "Event",
    "Feeder",
    "Futures",
    "Gathering",
    "IMapIterator",
    "Line",
    "Lock",
    "Piece",
    "Pool",
    "Queue",
    "RLock",
    "Request",
    "Seating",
    "Semaphore",
    "SimpleQueue",
    "Snapshot",
    "StartOrder",
    "Supervisor",
    "Template",
    "TemplateServer",
    "Tie",
    "Turn",
    "Waiters",
    "Worker",
    "child_of",
    "default_processes",
    "heed",
    "hint",
    "keep_to",
    "loan",
    "say",
    "self_pidfd",
    "snapshot",
    "spawn",
    "stream_pair",
    "trace_signal",
    "wait_readable",
    "worth_another_try",
]

@final
class Block:
    """A block of shared memory without a name. It supports the buffer protocol."""

    def __new__(cls, size: int, place: _Place | None = None) -> Block: ...
    def _place(self) -> _Place: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@disjoint_base
class Cell:
    """The inside of ``Synchronized``: a scalar with a lock."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def _bind(self, lock: tuple[Any, bool], object: Any, block: Block | None, letter: str) -> None:
        """What it is, and whether its lock is just ours.

        ``block`` is where it is, if it is a scalar of that letter and no more.
        """

    @property
    def value(self) -> Any:
        """The value; the lock is taken, also to set it."""

    @value.setter
    def value(self, value: Any) -> None: ...

@disjoint_base
class Cells:
    """The inside of ``SynchronizedArray``: an array with a lock."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def _bind(self, lock: tuple[Any, bool], object: Any, block: Block | None, letter: str) -> None:
        """What it is, and whether its lock is just ours.

        ``block`` is where it is, if it is scalars of that letter and no more.
        """

    def __len__(self) -> int: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __delitem__(self, key: Any, /) -> None:
        """Raise ``TypeError``."""

@final
class Arena:
    """Memory that shared objects lie in."""

    @staticmethod
    def adopt(fd: int) -> Arena:
        """The arena behind a descriptor that was left to this process, which is closed."""

    def fileno(self) -> int:
        """Its descriptor."""

_Place: TypeAlias = tuple[Arena, int]

@disjoint_base
class Lock:
    """A lock of processes."""

    def __new__(
        cls, *, ctx: object = None, on_abandoned: str = "warn", place: _Place | None = None
    ) -> Self: ...
    def acquire(self, block: object = None, timeout: float | None = None) -> bool:
        """Acquire it; whether that was done, at once or within ``timeout`` seconds."""

    def release(self) -> None:
        """Release it, whoever holds it."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, _kind: object = None, _value: object = None, _trace: object = None
    ) -> None: ...
    def locked(self) -> bool:
        """Whether somebody holds it."""

    @property
    def _on_abandoned(self) -> str: ...
    def _place(self) -> _Place: ...
    def _is_mine(self) -> bool: ...
    def _is_ours(self) -> bool: ...
    def _count(self) -> int: ...
    def _get_value(self) -> int: ...

@disjoint_base
class RLock:
    """A lock that its holder can acquire again."""

    def __new__(
        cls, *, ctx: object = None, on_abandoned: str = "warn", place: _Place | None = None
    ) -> Self: ...
    def acquire(self, block: object = None, timeout: float | None = None) -> bool:
        """Acquire it; whether that was done, at once or within ``timeout`` seconds."""

    def release(self) -> None:
        """Release it once."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, _kind: object = None, _value: object = None, _trace: object = None
    ) -> None: ...
    def locked(self) -> bool:
        """Whether somebody holds it."""

    @property
    def _on_abandoned(self) -> str: ...
    def _place(self) -> _Place: ...
    def _is_mine(self) -> bool: ...
    def _is_ours(self) -> bool: ...
    def _count(self) -> int: ...
    def _get_value(self) -> int: ...

@disjoint_base
class Semaphore:
    """Units that processes acquire and release."""

    def __new__(
        cls,
        value: int | None = None,
        *,
        ctx: object = None,
        on_abandoned: str = "warn",
        bounded: bool = False,
        place: _Place | None = None,
    ) -> Self: ...
    def acquire(self, block: object = None, timeout: float | None = None) -> bool:
        """Acquire a unit; whether that was done, at once or within ``timeout`` seconds."""

    def release(self) -> None:
        """Release a unit."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, _kind: object = None, _value: object = None, _trace: object = None
    ) -> None: ...
    def locked(self) -> bool:
        """Whether no unit is free."""

    def get_value(self) -> int:
        """How many units are free."""

    @property
    def maxvalue(self) -> int:
        """The most units that can be free."""

    @property
    def _on_abandoned(self) -> str: ...
    def _place(self) -> _Place: ...
    def _get_value(self) -> int: ...

@disjoint_base
class Event:
    """A flag that processes wait for."""

    def __new__(cls, *, ctx: object = None, place: _Place | None = None) -> Self: ...
    def is_set(self) -> bool:
        """Whether the flag is set."""

    def set(self) -> None:
        """Set the flag, and wake all who wait."""

    def clear(self) -> None:
        """Clear the flag."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; whether it was within ``timeout`` seconds."""

    def _place(self) -> _Place: ...

@final
class Waiters:
    """Who waits to be notified."""

    def __new__(cls, place: _Place | None = None) -> Self: ...
    def come(self) -> Turn:
        """Begin a wait."""

    def wait(self, turn: Turn, timeout: float | None) -> bool:
        """Wait to be notified; whether it was so within ``timeout`` seconds."""

    def notify(self, most: int) -> int:
        """Notify the first ``most``; how many it were."""

    def count(self) -> int:
        """How many wait."""

    def _place(self) -> _Place: ...

@final
class Turn:
    """A wait that has begun."""

@final
class Gathering:
    """Who has come to a barrier, and how the barrier stands."""

    def __new__(cls, place: _Place | None = None) -> Self: ...
    state: int

    def come(self) -> None:
        """A thread of this process has come."""

    def leave(self) -> None:
        """It leaves."""

    def count(self) -> int:
        """How many have come and not left."""

    def settle(self) -> int | None:
        """The pid of one who came and has ended since; it is not counted any more."""

    def _place(self) -> _Place: ...

@final
class Child:
    """A child process, watched by its pidfd."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def fileno(self) -> int:
        """Its pidfd: readable from its end on."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or ``None`` while it runs."""

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or ``None`` if it still runs after ``timeout`` seconds."""

    def send_signal(self, signal: int) -> None:
        """Send it a signal; nothing happens if it has ended."""

    def close(self) -> None:
        """Let go of its pidfd."""

def hint(errno: int, call: str | None = None) -> str | None:
    """Which limit an error of the system stands for, and how to raise it."""

def spawn(
    path: bytes,
    args: Sequence[bytes],
    env: Sequence[bytes] | None = None,
    fds: Sequence[int] = ...,
) -> Child:
    """Run a program that keeps the descriptors ``fds`` at their numbers, and no others above 2."""

def child_of(pid: int) -> Child:
    """The child that the caller has just forked."""

def self_pidfd() -> int:
    """A descriptor of this process, for its children to see its end by; opened once, and kept."""

@disjoint_base
class Connection:
    """One end of a pipe or a connection; what `phalanx.connection.Connection` inherits from.

    The attributes ``_handle``, ``_readable`` and ``_writable`` are as CPython's.
    """

    _handle: int | None
    _readable: bool
    _writable: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    @property
    def closed(self) -> bool:
        """Is it closed?"""

    @property
    def readable(self) -> bool:
        """May it receive?"""

    @property
    def writable(self) -> bool:
        """May it send?"""

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            OSError: the connection is closed.
        """

    def close(self) -> None:
        """Close the descriptor; again is nothing."""

    def send(self, obj: Any) -> None:
        """Send an object, by its pickle.

        Raises:
            BrokenPipeError: nobody has the other end any more.
        """

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send ``size`` bytes of a bytes-like object from ``offset`` on, by default all."""

    def recv(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError: there are no more, and nobody has the other end any more.
        """

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Wait for a message of bytes.

        Raises:
            EOFError: there are no more, and nobody has the other end any more.
            OSError: it is longer than ``maxlength``; nothing can be received after that.
        """

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Wait for a message of bytes, write it to ``buf`` and return its length.

        Raises:
            BufferTooShort: there is not enough room; the message is in its ``args``.
        """

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Is there something to receive, or the other end closed, within ``timeout`` seconds?"""

def stream_pair() -> tuple[int, int]:
    """Two connected descriptors, for bytes in both directions."""

def wait_readable(fds: Sequence[int], timeout: float | None = None) -> list[int]:
    """The places of the descriptors that can be read, in order, once there is one."""

@final
class Template:
    """A warm process that forks when asked."""

    @staticmethod
    def start(path: bytes, args: Sequence[bytes], env: Sequence[bytes] | None = None) -> Template:
        """Run the program that is to be a `TemplateServer` of its last argument's descriptor."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def is_alive(self) -> bool:
        """Can it be asked: does it run, and is this not a forked child of its owner?"""

    def launch(self, payload: bytes, fds: Sequence[int], hint: bytes | None = None) -> Child | None:
        """Have a child forked that is given ``payload`` and copies of ``fds``.

        ``None``: it has ended.

        ``hint``, of at most 4000 bytes, is for the template itself.
        """

    def stop(self, timeout: float) -> None:
        """End it, and wait for its end at most ``timeout`` seconds."""

@final
class TemplateServer:
    """The template's own side."""

    def __new__(cls, fd: int) -> TemplateServer: ...
    def next(self) -> Request | None:
        """Wait for a request, and report ends meanwhile; ``None`` when the owner is gone."""

    def launched(self, pid: int) -> None:
        """The last request has become the process ``pid``."""

    def refused(self, errno: int) -> None:
        """The last request could not be forked for."""

    def close(self) -> None:
        """Let go of everything, in a child."""

@final
class Request:
    """A child that the template was asked for."""

    @property
    def hint(self) -> bytes:
        """What the owner wrote for the template itself."""

    def is_known(self) -> bool:
        """In the child, without the server: wait until the owner knows of it, if it ever will."""

    def take(self) -> tuple[int, list[int]]:
        """The payload's descriptor and the others, which are the caller's from now on."""

    def close(self) -> None:
        """Close the descriptors that were not taken."""

# A number for a call, its callback and its error callback.
_Callbacks: TypeAlias = tuple[int, object, object]
# Timeout, start timeout, retries and back-off of a call; seconds.
_Asked: TypeAlias = tuple[float | None, float | None, int | None, float | None, bool | None]
_Bounds: TypeAlias = tuple[int | None, int | None, float | None, int | None, float]

@final
class StartOrder:
    """A start that a supervisor asks for."""

    @property
    def child(self) -> int:
        """The child's number."""

    @property
    def lifeline(self) -> int:
        """The descriptor for `keep_to`."""

    @property
    def tree(self) -> bool:
        """Is what the process starts to end with it?"""

@final
class Supervisor:
    """The engine's part of a supervisor."""

    def __new__(cls, name: str, strategy: str, intensity: int, period: float) -> Supervisor: ...
    def errand(self) -> tuple[str, Any] | None:
        """Wait for what needs Python.

        ``("start", StartOrder)``, ``("bury", child)`` or ``("forget", child)``; ``None`` when the
        supervisor has ended.
        """

    def started(self, order: StartOrder, child: Child) -> None:
        """The process has been started."""

    def refused(self, child: int, why: str) -> None:
        """The process could not be started."""

    def buried(self, child: int, trace: str) -> None:
        """The end of the child's process has been taken note of."""

    def add(self, name: str, restart: str, shutdown: float | None, tree: bool) -> int:
        """Add a child that is to be started."""

    def wait_started(self, child: int) -> None:
        """Wait until it has been started, or raise why not."""

    def terminate(self, name: str, timeout: float | None = None) -> bool:
        """Stop a child; whether it has ended within ``timeout`` seconds."""

    def restart(self, name: str) -> int:
        """Start a child that is down."""

    def delete(self, name: str) -> None:
        """Forget a child that is down."""

    def children(self) -> list[tuple[str, str, int | None, int, int | None]]:
        """Name, status, process id, restarts and exit code of each child."""

    def stop(self) -> None:
        """Stop all children and the supervisor; does not wait."""

    def failed(self) -> BaseException | None:
        """Why it has ended, if too many deaths have ended it."""

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until no child runs or is about to; whether that was within ``timeout`` seconds."""

@final
class Tie:
    """Our end of a lifeline: who keeps to the other end is killed when this is gone."""

    @staticmethod
    def make() -> tuple[Tie, int]:
        """A lifeline: our end, and a child's, which is the caller's to close."""

def keep_to(lifeline: int, tree: bool) -> None:
    """In a child: end with the process at the other end from now on."""

@final
class Seating:
    """A seat on offer: what a new worker is started with."""

    @property
    def seat(self) -> int:
        """The seat's number."""

    @property
    def tree(self) -> bool:
        """Is what the worker starts to end with it?"""

    @property
    def memory(self) -> int:
        """The descriptor of the pool's memory."""

    @property
    def event(self) -> int:
        """The descriptor of the event that wakes the pool's engine thread."""

    @property
    def lifeline(self) -> int:
        """The worker's end of its lifeline."""

    @property
    def report(self) -> int:
        """Where the worker writes what it is doing, when it is told to."""

@final
class Worker:
    """A worker of a pool, in its own process."""

    def __new__(cls, memory: int, event: int, lifeline: int, seat: int, tree: bool) -> Self:
        """Take a seat; copies are made of the descriptors. The process now ends with its owner.

        With ``tree``, what it starts ends with it.
        """

    def unfit(self, message: str, traceback: str) -> None:
        """Say that this worker cannot be readied."""

    def serve(self, maxtasks: int | None = None) -> None:
        """Run tasks until the pool says to leave, or ``maxtasks`` of them have been run."""

@final
class AsyncResult:
    """The results of one call, which several threads may wait for."""

    @classmethod
    def __class_getitem__(cls, key: Any) -> GenericAlias: ...
    @property
    def _number_left(self) -> int: ...
    def get(self, timeout: float | None = None) -> Any:
        """What the call returned; what it raised is raised here.

        Raises:
            multiprocessing.TimeoutError: after ``timeout`` seconds.
            WorkerDied: the worker died that was running it.
            ValueError: the pool was terminated.
        """

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, or ``timeout`` seconds have passed."""

    def ready(self) -> bool:
        """Has the call ended?"""

    def successful(self) -> bool:
        """Did it end without an exception?

        Raises:
            ValueError: it has not ended.
        """

    def cancel(self) -> bool:
        """End the call's tasks; false if all had ended.

        Tasks that have not begun vanish. In those that run `phalanx.TaskCancelled` is raised, and
        if that does not end one, its worker gets SIGTERM after the pool's ``grace``, and SIGKILL
        after as long again. ``get`` then raises `phalanx.TaskCancelled`.
        """

    def announce(self) -> None:
        """See to it that the end becomes an errand of the pool, if there is a callback."""

    def call_back(self) -> None:
        """Call the callback that fits the end. For the thread that runs the pool's errands."""

@final
class IMapIterator:
    """The results of an ``imap``, while its input is still being read."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            multiprocessing.TimeoutError: after ``timeout`` seconds.
            StopIteration: there are no more.
            ValueError: the pool was joined before the input was read to its end.
        """

    def feeder(self) -> Feeder:
        """The other end, for the thread that reads the input."""

    def reading(self) -> bool:
        """Is the input being read still?"""

    def drain(self) -> bool:
        """Read the whole input, if it is known to end or nobody has begun to take results."""

    def stop(self) -> None:
        """Read no more of the input."""

    def abandon(self) -> None:
        """Read no more of the input; what was read ahead is nobody's loss if the pool ends."""

    def cancel(self) -> bool:
        """Read no more of the input, and end its tasks; false if all had ended."""

@final
class Feeder:
    """The end of an ``IMapIterator`` that puts items."""

    def put(self, items: list[Any]) -> bool:
        """Submit a chunk, first waiting for room. False: nobody wants it any more."""

    def end(self, error: BaseException | None = None) -> None:
        """Say that the input has ended, with this exception or with none."""

def default_processes() -> int:
    """How many workers a pool has that was not told."""

@final
class Piece:
    """Bytes in shared memory, which may be written to; a buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Snapshot:
    """Bytes that are copied to a pool's memory once; a buffer."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def snapshot(object: object) -> tuple[Snapshot, list[Snapshot]]:
    """Copy an object: its pickle, and the large buffers of that.

    Raises:
        MemoryError: there is no room.
    """

def trace_signal() -> int:
    """The signal that wants a worker's stack at once."""

def heed() -> None:
    """In the handler of a worker's SIGURG: raise if the task that it runs is to end.

    Raises:
        TaskTimeout: its time is over.
        TaskCancelled: nobody wants it any more.
        WorkerMemoryExceeded: its worker has more memory in use than it may have.
    """

def worth_another_try() -> None:
    """In a worker: the exception that is being raised is reason for another try."""

def say(note: bytes) -> bool:
    """In a worker: send its owner a note. False: this is no worker."""

def loan(len: int) -> Piece | None:
    """Room for ``len`` bytes of a result; ``None`` if this is no worker, or there is none."""

@final
class Pool:
    """The engine's part of a pool."""

    def __new__(
        cls,
        workers: int,
        asked: _Asked = ...,
        grace: float | None = None,
        bounds: _Bounds = ...,
    ) -> Self:
        """A pool whose tasks have these terms, if their calls do not ask for others.

        ``bounds`` are those of its workers: bytes of memory, soft and hard, seconds of life, how
        many may die, and within how many seconds.

        Raises:
            ValueError: no workers, a timeout that is not above 0, another negative time.
        """

    def prepare(self, seat: int, tree: bool) -> Seating | None:
        """Offer a seat that is empty; ``None`` if the pool has ended.

        With ``tree``, what the worker starts is to end with it.

        Raises:
            ValueError: the seat is taken.
        """

    def seat(self, seating: Seating, child: Child) -> None:
        """Say that a process has been started in the seat."""

    def refused(self, seat: int, why: str, errno: int | None) -> None:
        """Say that no process could be started in the seat.

        It becomes an errand again: as long as it takes, if ``errno`` says that something is short;
        else the pool ends after some attempts.
        """

    def errand(self) -> tuple[str, int, bytes | None] | None:
        """Wait for something that needs Python.

        ``("staff", seat, None)``, ``("done", token, None)`` or ``("note", task, bytes)``; ``None``:
        the pool has ended.
        """

    def apply(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        pool: object,
        asked: _Asked | None = None,
        callbacks: _Callbacks | None = None,
    ) -> AsyncResult:
        """Submit one call."""

    def map(
        self,
        function: Callable[..., Any],
        items: Any,
        chunk: int | None,
        pool: object,
        asked: _Asked | None = None,
        callbacks: _Callbacks | None = None,
        *,
        star: bool,
        wait: bool,
    ) -> AsyncResult:
        """Submit a call for each item; ``wait`` lets the first ones be measured meanwhile."""

    def imap(
        self,
        function: Callable[..., Any],
        input: Any,
        chunk: int,
        pool: object,
        asked: _Asked | None = None,
        *,
        prompt: bool,
        sized: bool,
        buffer: int | None,
        ordered: bool,
    ) -> IMapIterator:
        """Submit a call for each item as there is room; a ``prompt`` input is read right here."""

    def cancel_all(self) -> int:
        """End all tasks, those that run as their terms say; how many had not ended."""

    def waiting(self) -> tuple[int, int]:
        """Calls that have not ended, without those with callbacks; tasks no worker was given."""

    def stats(
        self,
    ) -> list[tuple[int | None, int, int, int, float, float | None, int, int | None, float | None]]:
        """The fields of `phalanx.stats.WorkerStats`, of each worker."""

    def stacks(self, timeout: float) -> list[tuple[int, str]]:
        """The pids of the workers, and what they are doing, if they can say so in time."""

    def loan(self, len: int) -> Piece | None:
        """Room for ``len`` bytes of arguments; ``None`` if they are too few, or there is none."""

    def failure(self) -> str | None:
        """Why it has ended before its time, if it has, and was not told to."""

    def close(self) -> None:
        """Accept no more tasks."""

    def terminate(self, why: str) -> int:
        """End the pool; who still waits is told ``why``. How many tasks had not ended."""

    def kill(self) -> None:
        """Kill the workers that are still there."""

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until no worker is left. False: ``timeout`` seconds have passed."""

@final
class Futures:
    """The futures of an executor, and who completes them."""

    def __new__(
        cls,
        pool: Pool,
        make: Callable[[], Any],
        fail: Callable[[Any, BaseException, bool], object],
    ) -> Self: ...
    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Submit a call and return its future; one that cannot be sent has failed."""

    def withdraw(self, name: int) -> bool:
        """Take a task back that no worker has begun; its future is not completed here."""

    def has_begun(self, name: int) -> bool:
        """Is a worker running the task of this future?"""

    def pending(self) -> list[Any]:
        """The futures that are not completed, in the order of their submission."""

    def broken(self) -> str | None:
        """Why the workers are of no more use, if they are not."""

    def check(self) -> None:
        """Raise ``ValueError`` in a forked child: futures will never be completed there."""

    def outstanding(self) -> int:
        """The number of tasks that have not ended."""

    def close(self) -> None:
        """Say that no future will be made any more."""

    def run(self) -> None:
        """Complete futures as outcomes arrive, until the last after ``close``."""

@final
class Line:
    """Objects to and from a process that a socket leads to, through shared memory.

    Used by one thread at a time. `EOFError` says that the other side has closed it or died; what
    it had sent before is received first.
    """

    @staticmethod
    def offer(fd: int) -> Line:
        """Make the memory and send it over the ``AF_UNIX`` stream ``fd``, which is copied."""

    @staticmethod
    def accept(fd: int) -> Line:
        """Take the memory that the other side has offered over ``fd``, which is copied."""

    def call(self, request: object, *, shielded: bool = False) -> Any:
        """Send an object and receive the answer; ``None``, and nothing sent, if it is in use.

        An exception out of the wait (``KeyboardInterrupt``) closes the line, since the answer may
        still come; with ``shielded`` signals wait for the answer.
        """

    def send(self, object: object) -> None:
        """Send an object. One that cannot be pickled leaves the line as it was."""

    def recv(self) -> Any:
        """The next object. One that cannot be unpickled leaves the line as it was."""

    def close(self) -> None:
        """Close it; a thread that waits on it gets `EOFError`."""

    @property
    def closed(self) -> bool:
        """Is it of no use any more in this process?"""

    def fileno(self) -> int:
        """The socket's descriptor, which ends with the other side."""

@disjoint_base
class Queue:
    """What ``Queue`` and ``JoinableQueue`` stand on."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def _create(self, maxsize: int) -> None:
        """Make the queue; 0 is without a bound."""

    def _open(self, memory: int, event: int) -> None:
        """Open another process's by its descriptors, of which it takes copies."""

    def _descriptors(self) -> tuple[int, int]:
        """The descriptors of its memory and its event."""

    @property
    def _closed(self) -> bool: ...
    @property
    def _maxsize(self) -> int: ...
    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object; it is pickled here, and what that raises is raised."""

    def put_many(
        self, items: Iterable[Any], block: bool = True, timeout: float | None = None
    ) -> int:
        """Put objects together, and tell how many there was room for."""

    def put_nowait(self, obj: Any) -> None:
        """Put an object if there is room now."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first object."""

    def get_many(self, max: int, block: bool = True, timeout: float | None = None) -> list[Any]:
        """Take all that are there, at most ``max``, after a wait for the first."""

    def get_nowait(self) -> Any:
        """Take the first object if there is one now."""

    def qsize(self) -> int:
        """How many objects there are, at this instant."""

    def empty(self) -> bool:
        """Is there none, at this instant?"""

    def full(self) -> bool:
        """Is there no room, at this instant?"""

    def close(self) -> None:
        """This process will neither put nor get any more."""

    def _unfinished(self) -> int: ...
    def _done(self) -> bool: ...
    def _join(self, timeout: float | None = None) -> bool: ...
    def _watch(self) -> int: ...
    def _poll(self, timeout: float | None) -> bool: ...
    def _take(self) -> Any: ...
    def _put_pickle(self, bytes: bytes) -> None: ...

@disjoint_base
class SimpleQueue:
    """What ``SimpleQueue`` stands on."""

    def __new__(cls, *_args: object, **_kwargs: object) -> Self: ...
    def _create(self) -> None:
        """Make the queue."""

    def _open(self, memory: int, event: int) -> None:
        """Open another process's by its descriptors, of which it takes copies."""

    def _descriptors(self) -> tuple[int, int]:
        """The descriptors of its memory and its event."""

    @property
    def _closed(self) -> bool: ...
    def put(self, obj: Any) -> None:
        """Put an object; it is pickled here, and what that raises is raised."""

    def get(self) -> Any:
        """Take the first object."""

    def empty(self) -> bool:
        """Is there none, at this instant?"""

    def close(self) -> None:
        """This process will neither put nor get any more."""

    def _watch(self) -> int: ...
    def _poll(self, timeout: float | None) -> bool: ...
    def _take(self) -> Any: ...
    def _put_pickle(self, bytes: bytes) -> None: ...
