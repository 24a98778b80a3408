"""The cases of the bench that have no pool: queues, pipes, locks, shared memory, managers.

Each gets a context and yields a figure for each of its measures, as in `bench`.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

now = time.perf_counter

SMALL = (1, "abc", 2.5)
MIB = bytes(1 << 20)


def produce(queue: Any, start: Any, item: Any, n: int) -> None:
    start.recv()
    for _ in range(n):
        queue.put(item)


def echo(get: Any, put: Any) -> None:
    while (item := get()) is not None:
        put(item)


def sink(connection: Any, n: int) -> None:
    for _ in range(n):
        connection.recv_bytes()
    connection.send(None)


def add(value: Any, start: Any, n: int) -> None:
    start.recv()
    for _ in range(n):
        with value.get_lock():
            value.value += 1


def queue(ctx: Any) -> Iterator[float]:
    for item, n in ((SMALL, 60_000), (MIB, 400)):
        items = ctx.Queue()
        start, go = ctx.Pipe(duplex=False)
        child = ctx.Process(target=produce, args=(items, start, item, n))
        child.start()
        time.sleep(0.1)
        started = now()
        go.send(None)
        for _ in range(n):
            items.get()
        took = now() - started
        child.join()
        yield n / took if item is SMALL else n * len(MIB) / took / 1e9
    there, back = ctx.Queue(), ctx.Queue()
    yield from _answers(ctx, there.get, back.put, there.put, back.get)


def _answers(ctx: Any, get: Any, put: Any, ask: Any, hear: Any) -> Iterator[float]:
    """The median time between a message and its answer, in microseconds."""
    child = ctx.Process(target=echo, args=(get, put))
    child.start()
    times = []
    for _ in range(5_000):
        started = now()
        ask(SMALL)
        hear()
        times.append((now() - started) * 1e6)
    ask(None)
    child.join()
    yield statistics.median(times)


def pipe(ctx: Any) -> Iterator[float]:
    here, there = ctx.Pipe()
    yield from _answers(ctx, there.recv, there.send, here.send, here.recv)
    n = 400
    here, there = ctx.Pipe()
    child = ctx.Process(target=sink, args=(there, n))
    child.start()
    here.send_bytes(b"")
    started = now()
    for _ in range(n - 1):
        here.send_bytes(MIB)
    here.recv()
    yield n * len(MIB) / (now() - started) / 1e9
    child.join()


def lock(ctx: Any) -> Iterator[float]:
    n = 300_000
    for each in (ctx.Lock(), ctx.Semaphore()):
        acquire, release = each.acquire, each.release
        started = now()
        for _ in range(n):
            acquire()
            release()
        yield (now() - started) / n * 1e9
    held = ctx.Lock()
    started = now()
    for _ in range(n):
        with held:
            pass
    yield (now() - started) / n * 1e9
    is_set = ctx.Event().is_set
    started = now()
    for _ in range(n):
        is_set()
    yield (now() - started) / n * 1e9


def shared(ctx: Any) -> Iterator[float]:
    n = 200_000
    value, array = ctx.Value("q", 1), ctx.Array("q", 1000)
    started = now()
    for _ in range(n):
        value.value  # noqa: B018
    yield (now() - started) / n * 1e9
    started = now()
    for _ in range(n):
        array[7]
    yield (now() - started) / n * 1e9
    starts = [ctx.Pipe(duplex=False) for _ in range(2)]
    children = [ctx.Process(target=add, args=(value, start, n)) for start, _ in starts]
    for child in children:
        child.start()
    time.sleep(0.1)
    started = now()
    for _, go in starts:
        go.send(None)
    for child in children:
        child.join()
    yield 2 * n / (now() - started)


def manager(ctx: Any) -> Iterator[float]:
    started = now()
    managed = ctx.Manager()
    yield (now() - started) * 1e3
    n = 5_000
    mapping = managed.dict()
    started = now()
    for i in range(n):
        mapping[i] = i
    yield n / (now() - started)
    started = now()
    for i in range(n):
        mapping[i]
    yield n / (now() - started)
    managed.shutdown()
