"""The cases of pools and executors with small tasks, and what pools and processes cost to have."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import libraries
import tasks
from cases import CONTEXTS, PHALANX, POOLS, case, percentile

now = time.perf_counter
EXECUTORS = (*PHALANX, "ppe-fork", "loky")


def warm(pool: libraries.Pool) -> libraries.Pool:
    """The same pool, when its workers have run something."""
    pool.map(tasks.identity, range(8))
    pool.apply(tasks.identity, 0)
    return pool


def count(library: str, n: int) -> int:
    """How often: less with those that are slow, so that all take about a second."""
    quick = library.startswith(("phalanx", "mp", "serial", "pickle", "nothing"))
    return n if quick and library != "mpire" else n // (20 if library == "joblib" else 5)


# Throughput.


@case((*POOLS, "pickle"), ("submit each, then get each", "tasks/s"))
def submit(library: str) -> Iterator[float]:
    n = count(library, 20_000)
    pool = warm(libraries.pool(library))
    began = now()
    assert pool.submit(tasks.identity, range(n))[-1] == n - 1
    yield n / (now() - began)
    pool.close()


@case((*POOLS, "pickle"), ("imap, chunks of 1", "items/s"))
def imap(library: str) -> Iterator[float]:
    n = count(library, 40_000)
    pool = warm(libraries.pool(library))
    began = now()
    assert sum(pool.imap(tasks.square, range(n))) == sum(i * i for i in range(n))
    yield n / (now() - began)
    pool.close()


@case((*POOLS, "pickle"), ("map, chunks of 1", "items/s"))
def map_ones(library: str) -> Iterator[float]:
    n = count(library, 40_000)
    pool = warm(libraries.pool(library))
    began = now()
    assert pool.map(tasks.square, range(n), 1)[-1] == (n - 1) ** 2
    yield n / (now() - began)
    pool.close()


@case((*POOLS, "serial"), ("map, default chunks", "items/s"))
def map_default(library: str) -> Iterator[float]:
    """The executors, loky and pebble send items one by one unless they are told otherwise."""
    slow = {"joblib": 100_000, "mpire": 100_000}
    n = slow.get(library, 10_000 if library in ("ppe-fork", "loky", "pebble") else 1_000_000)
    pool = warm(libraries.pool(library))
    began = now()
    assert pool.map(tasks.square, range(n))[-1] == (n - 1) ** 2
    yield n / (now() - began)
    pool.close()


@case((*EXECUTORS, "nothing"), ("executor: submit each, then result of each", "calls/s"))
def executor_submit(library: str) -> Iterator[float]:
    n = 10_000
    pool = warm(libraries.Executor(library))
    began = now()
    assert pool.submit(tasks.identity, range(n))[-1] == n - 1
    yield n / (now() - began)
    pool.close()


@case((*EXECUTORS, "nothing"), ("asyncio: gather of 10,000 calls", "calls/s"))
def gather(library: str) -> Iterator[float]:
    import asyncio  # noqa: PLC0415

    n = 10_000
    pool = warm(libraries.Executor(library))

    async def calls() -> float:
        loop = asyncio.get_running_loop()
        began = now()
        each = (loop.run_in_executor(pool.pool, tasks.identity, i) for i in range(n))
        assert await asyncio.gather(*each) == list(range(n))
        return n / (now() - began)

    yield asyncio.run(calls())
    pool.close()


# Latency.


def times_of_trips(library: str) -> tuple[float, float]:
    """The median and the 99th of a hundred, in microseconds."""
    pool = warm(libraries.pool(library))
    times = []
    for i in range(100 if library == "joblib" else count(library, 5_000)):
        began = now()
        pool.apply(tasks.identity, i)
        times.append((now() - began) * 1e6)
    pool.close()
    return percentile(times, 50), percentile(times, 99)


@case(POOLS, ("round trip, quiet, p50", "us"), ("round trip, quiet, p99", "us"))
def roundtrip(library: str) -> Iterator[float]:
    yield from times_of_trips(library)


@case(
    (*CONTEXTS, "ppe-fork", "mpire", "pebble"),
    ("round trip, busy, p50", "us"),
    ("round trip, busy, p99", "us"),
)
def roundtrip_busy(library: str) -> Iterator[float]:
    """While another program computes on every second core."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range((os.cpu_count() or 2) // 2)]
    try:
        yield from times_of_trips(library)
    finally:
        for other in others:
            other.kill()
            other.wait()


@case(
    (*CONTEXTS, "ppe-fork", "mpire", "pebble"),
    ("round trip, pinned to one core, p50", "us"),
    ("round trip, pinned to one core, p99", "us"),
)
def roundtrip_pinned(library: str) -> Iterator[float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    yield from times_of_trips(library)


# What they cost to have.


@case(
    ("mp-fork", "phalanx-fork", "mp-forkserver", "phalanx-forkserver", *POOLS[3:], "interpreter"),
    ("a first pool: open, one task, close", "ms"),
    ("a second pool", "ms"),
)
def startup(library: str) -> Iterator[float]:
    """``interpreter`` only starts Python, twice: what a first fork server has to do, at least."""
    if library == "interpreter":
        for _ in range(2):
            began = now()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            yield (now() - began) * 1e3
        return
    importlib.import_module(libraries.module(library))
    for _ in ("first", "second"):
        began = now()
        pool = libraries.pool(library)
        assert pool.apply(tasks.square, 3) == 9
        pool.close()
        yield (now() - began) * 1e3


@case(
    ("mp-fork", "phalanx-fork", "mp-forkserver", "phalanx-forkserver"),
    ("a process: start, join", "ms"),
)
def process(library: str) -> Iterator[float]:
    context = libraries.context(library)
    times = []
    for _ in range(21):
        began = now()
        child = context.Process(target=tasks.nothing)
        child.start()
        child.join()
        times.append((now() - began) * 1e3)
    yield percentile(times[1:], 50)  # the first starts the fork server, too


@case(
    ("mp-fork", "phalanx-fork", "mp-forkserver", "phalanx-forkserver", "ppe-fork", "loky", "mpire"),
    ("an idle worker's own memory (USS)", "MiB"),
    rounds=3,
)
def memory(library: str) -> Iterator[float]:
    import psutil  # noqa: PLC0415

    pool = warm(libraries.pool(library))
    pids: set[int] = set()
    while len(pids) < libraries.WORKERS:
        pids.update(pool.map(tasks.own_pid, [0.05] * 4, 1))
    sizes = [psutil.Process(pid).memory_full_info().uss / 2**20 for pid in pids]
    yield sum(sizes) / len(sizes)
    pool.close()


@case(("mp-fork", "phalanx-fork", *POOLS[3:]), ("import", "ms"))
def import_(library: str) -> Iterator[float]:
    """In interpreters that have imported nothing else."""
    clock = "from time import perf_counter as now; began = now()"
    program = f"{clock}; import {libraries.module(library)}; print((now() - began) * 1e3)"
    command = [sys.executable, "-c", program]
    times = [float(subprocess.check_output(command)) for _ in range(5)]
    yield percentile(times, 50)


@case(
    ("mp-fork", "phalanx-forkserver", "ppe-fork", "mpire"),
    ("skewed work, random order", "x ideal"),
    ("skewed work, ascending", "x ideal"),
    ("skewed work, descending", "x ideal"),
    rounds=3,
)
def skew(library: str) -> Iterator[float]:
    """200 sleeps with a heavy tail: the time they take by the least that they can take."""
    import random  # noqa: PLC0415

    rng = random.Random(7)
    tail = [min(rng.paretovariate(1.1), 80) for _ in range(200)]
    sleeps = [1.2 * each / sum(tail) for each in tail]  # seconds, 1.2 in all
    ideal = max(sum(sleeps) / libraries.WORKERS, *sleeps)
    pool = warm(libraries.pool(library))
    for order in (sleeps, sorted(sleeps), sorted(sleeps, reverse=True)):
        began = now()
        pool.map(time.sleep, order)
        yield (now() - began) / ideal
    pool.close()


# Scale.


@case(
    ("mp-fork", "phalanx-forkserver"),
    *((f"submit with {workers} workers", "tasks/s") for workers in (1, 2, 8, 64)),
    rounds=3,
)
def workers(library: str) -> Iterator[float]:
    n = 20_000
    for workers in (1, 2, 8, 64):
        with libraries.context(library).Pool(workers) as pool:
            pool.map(tasks.own_pid, [0.01] * workers * 2, 1)
            began = now()
            results = [pool.apply_async(tasks.identity, (i,)) for i in range(n)]
            assert [result.get() for result in results][-1] == n - 1
            yield n / (now() - began)


@case(
    ("mp-fork", "phalanx-forkserver"),
    ("8 threads submit to one pool", "tasks/s"),
    rounds=3,
)
def callers(library: str) -> Iterator[float]:
    import threading  # noqa: PLC0415

    n, callers = 40_000, 8
    pool = warm(libraries.pool(library))
    each = (tasks.identity, range(n // callers))
    threads = [threading.Thread(target=pool.submit, args=each) for _ in range(callers)]
    began = now()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield n / (now() - began)
    pool.close()
