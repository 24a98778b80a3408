"""The cases without a pool: queues, pipes, locks, shared memory, managers."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import libraries
from cases import case, percentile

now = time.perf_counter

SMALL = (1, "abc", 2.5)
MIB = 1 << 20


# What the other process does.


def produce(start: Any, put: Callable[[Any], Any], item: Any, n: int) -> None:
    start.recv()
    for _ in range(n):
        put(item)


def echo(get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
    while (item := get()) is not None:
        put(item)


def sink(receive: Any, done: Any, n: int) -> None:
    for _ in range(n):
        receive.recv_bytes()
    done.send(None)


def add(start: Any, value: Any, n: int) -> None:
    start.recv()
    for _ in range(n):
        with value.get_lock():
            value.value += 1


def make(library: str, kind: str, size: int) -> tuple[Any, Any]:
    """A queue with room for some items of that size, and the context for its processes."""
    if library == "faster-fifo":
        import faster_fifo  # noqa: PLC0415

        return faster_fifo.Queue(max(8 * MIB, 4 * size)), libraries.context("mp-fork")
    context = libraries.context(library)
    return getattr(context, kind)(), context


def stream(library: str, kind: str, item: Any, n: int, many: int = 0) -> float:
    """Seconds until all that another process puts has arrived; ``many`` at a time, if so."""
    size = len(item) if isinstance(item, bytes) else 0
    queue, context = make(library, kind, size)
    here, there = context.Pipe()
    put, what = (queue.put_many, [item] * many) if many else (queue.put, item)
    child = context.Process(target=produce, args=(there, put, what, n // (many or 1)))
    child.start()
    time.sleep(0.1)  # until it waits
    began = now()
    here.send(None)
    if many:
        got = 0
        while got < n:
            if library == "faster-fifo":
                got += len(queue.get_many(timeout=30, max_messages_to_get=1000))
            else:
                got += len(queue.get_many(1000))
    else:
        arguments = (True, 30) if library == "faster-fifo" else ()
        for _ in range(n):
            queue.get(*arguments)
    took = now() - began
    child.join()
    return took


def answers(context: Any, get: Any, put: Any, ask: Any, hear: Any) -> float:
    """The median time between a message and its answer, in microseconds."""
    child = context.Process(target=echo, args=(get, put))
    child.start()
    times = []
    for _ in range(5_000):
        began = now()
        ask(SMALL)
        hear()
        times.append((now() - began) * 1e6)
    ask(None)
    child.join()
    return percentile(times, 50)


QUEUES = ("mp-fork", "phalanx-fork", "faster-fifo")


@case(
    QUEUES,
    ("`Queue`, small items", "items/s"),
    ("`Queue`, items of 1 MiB", "GB/s"),
    ("`Queue`, items of 64 MiB", "GB/s"),
    ("through a `Queue` and back, p50", "us"),
)
def queue(library: str) -> Iterator[float]:
    n = 50_000
    yield n / stream(library, "Queue", SMALL, n)
    for size, n in ((MIB, 300), (64 * MIB, 6)):
        yield n * size / stream(library, "Queue", bytes(size), n) / 1e9
    there, context = make(library, "Queue", 0)
    back, _ = make(library, "Queue", 0)
    yield answers(context, there.get, back.put, there.put, back.get)


@case(("phalanx-fork", "faster-fifo"), ("`put_many` and `get_many` of 100", "items/s"))
def queue_many(library: str) -> Iterator[float]:
    n = 200_000
    yield n / stream(library, "Queue", SMALL, n, many=100)


@case(
    ("mp-fork", "phalanx-fork"),
    ("`SimpleQueue`, small items", "items/s"),
    ("`SimpleQueue`, items of 1 MiB", "GB/s"),
)
def simple_queue(library: str) -> Iterator[float]:
    n = 50_000
    yield n / stream(library, "SimpleQueue", SMALL, n)
    n = 300
    yield n * MIB / stream(library, "SimpleQueue", bytes(MIB), n) / 1e9


@case(
    ("mp-fork", "phalanx-fork"),
    ("through a `Pipe` and back, p50", "us"),
    ("`send_bytes` of 1 MiB, two-way `Pipe`", "GB/s"),
    ("`send_bytes` of 1 MiB, one-way `Pipe`", "GB/s"),
)
def pipe(library: str) -> Iterator[float]:
    context = libraries.context(library)
    here, there = context.Pipe()
    yield answers(context, there.recv, there.send, here.send, here.recv)
    n, item = 400, bytes(MIB)
    for duplex in (True, False):
        done, tell = context.Pipe(False)
        receive, send = context.Pipe(duplex)
        child = context.Process(target=sink, args=(receive, tell, n))
        child.start()
        send.send_bytes(b"")
        began = now()
        for _ in range(n - 1):
            send.send_bytes(item)
        done.recv()
        yield n * MIB / (now() - began) / 1e9
        child.join()


def each(n: int, step: Callable[[], Any]) -> float:
    """Nanoseconds a call."""
    began = now()
    for _ in range(n):
        step()
    return (now() - began) / n * 1e9


@case(
    ("mp-fork", "phalanx-fork"),
    ("`Lock`: acquire, release", "ns"),
    ("`RLock`: acquire, release", "ns"),
    ("`Semaphore`: acquire, release", "ns"),
    ("`with` a `Lock`", "ns"),
    ("`Event.is_set`", "ns"),
)
def lock(library: str) -> Iterator[float]:
    context = libraries.context(library)
    n = 200_000
    for one in (context.Lock(), context.RLock(), context.Semaphore()):
        acquire, release = one.acquire, one.release
        began = now()
        for _ in range(n):
            acquire()
            release()
        yield (now() - began) / n * 1e9
    held = context.Lock()
    began = now()
    for _ in range(n):
        with held:
            pass
    yield (now() - began) / n * 1e9
    yield each(n, context.Event().is_set)


@case(
    ("mp-fork", "phalanx-fork"),
    ("`Value.value`", "ns"),
    ("`Array[i]`", "ns"),
    ("`Array[:]` of 1,000", "ns"),
    ("two processes add to one `Value`", "additions/s"),
)
def shared(library: str) -> Iterator[float]:
    context = libraries.context(library)
    n = 100_000
    value, array = context.Value("q", 1), context.Array("q", 1000)
    began = now()
    for _ in range(n):
        value.value  # noqa: B018
    yield (now() - began) / n * 1e9
    began = now()
    for _ in range(n):
        array[7]
    yield (now() - began) / n * 1e9
    yield each(2_000, lambda: array[:])
    starts = [context.Pipe(duplex=False) for _ in range(2)]
    children = [context.Process(target=add, args=(start, value, n)) for start, _ in starts]
    for child in children:
        child.start()
    time.sleep(0.1)  # until they wait
    began = now()
    for _, go in starts:
        go.send(None)
    for child in children:
        child.join()
    yield 2 * n / (now() - began)


@case(
    ("mp-fork", "phalanx-fork"),
    ("a manager's start", "ms"),
    ("a managed dict's `d[k] = v`", "calls/s"),
    ("a managed dict's `d[k]`", "calls/s"),
    ("a managed list's `append`", "calls/s"),
)
def manager(library: str) -> Iterator[float]:
    context = libraries.context(library)
    began = now()
    managed = context.Manager()
    yield (now() - began) * 1e3
    n = 5_000
    mapping, values = managed.dict(), managed.list()
    began = now()
    for i in range(n):
        mapping[i] = i
    yield n / (now() - began)
    began = now()
    for i in range(n):
        mapping[i]
    yield n / (now() - began)
    began = now()
    for i in range(n):
        values.append(i)
    yield n / (now() - began)
    managed.shutdown()
