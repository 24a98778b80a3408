"""phalanx against multiprocessing, as a Markdown table.

    make bench
    python benches/python/bench.py --rounds 5 --only submit,roundtrip

Every measure is taken in a fresh interpreter, and the libraries take turns (A B A B ...), so that
what else the machine does meets both alike. A cell is the median of the rounds. The ratio is
phalanx's median by multiprocessing's; the bar is what we promise for it. Pools have two workers.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import objects

WORKERS = 2
LIMIT = 120  # seconds for one case
now = time.perf_counter


class Measure(NamedTuple):
    """One row of the table."""

    name: str
    unit: str
    method: str
    bar: str  # what the ratio, or for `skew` the figure itself, has to be: ">= 5"
    ratio: bool = True


class Case(NamedTuple):
    """What is measured in one interpreter: a function that yields a figure a measure."""

    run: Callable[[Any], Iterator[float]]
    measures: list[Measure]


# Tasks.


def nothing() -> None:
    pass


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def own_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


# Cases: each gets a context, with `Process` and `Pool`.


@contextlib.contextmanager
def warm_pool(ctx: Any) -> Iterator[Any]:
    """A pool whose workers have run something."""
    pool = ctx.Pool(WORKERS)
    pool.map(identity, range(8), 1)
    yield pool
    pool.close()
    pool.join()


def submit(ctx: Any) -> Iterator[float]:
    n = 20_000
    with warm_pool(ctx) as pool:
        started = now()
        results = [pool.apply_async(identity, (i,)) for i in range(n)]
        assert [result.get() for result in results] == list(range(n))
        yield n / (now() - started)


def imap(ctx: Any) -> Iterator[float]:
    n = 50_000
    with warm_pool(ctx) as pool:
        started = now()
        assert sum(pool.imap(square, range(n), 1)) == sum(i * i for i in range(n))
        yield n / (now() - started)


def map_(ctx: Any) -> Iterator[float]:
    with warm_pool(ctx) as pool:
        for n, chunksize in ((50_000, 1), (1_000_000, None)):
            started = now()
            assert pool.map(square, range(n), chunksize)[-1] == (n - 1) ** 2
            yield n / (now() - started)


def roundtrip(ctx: Any) -> Iterator[float]:
    with warm_pool(ctx) as pool:
        times = []
        for i in range(5_000):
            started = now()
            pool.apply(identity, (i,))
            times.append((now() - started) * 1e6)
    cuts = statistics.quantiles(times, n=100)
    yield cuts[49]
    yield cuts[98]


def startup(ctx: Any) -> Iterator[float]:
    for _ in ("first", "second"):
        started = now()
        pool = ctx.Pool(WORKERS)
        assert pool.apply(square, (3,)) == 9
        pool.close()
        pool.join()
        yield (now() - started) * 1e3


def process(ctx: Any) -> Iterator[float]:
    times = []
    for _ in range(21):
        started = now()
        child = ctx.Process(target=nothing)
        child.start()
        child.join()
        times.append((now() - started) * 1e3)
    yield statistics.median(times[1:])  # the first starts the fork server too


def skew(ctx: Any) -> Iterator[float]:
    """200 sleeps with a heavy tail: the time they take by the least that they can take."""
    rng = random.Random(7)
    tail = [min(rng.paretovariate(1.1), 80) for _ in range(200)]
    sleeps = [1.2 * each / sum(tail) for each in tail]  # seconds, 1.2 in all
    ideal = max(sum(sleeps) / WORKERS, *sleeps)
    with warm_pool(ctx) as pool:
        for order in (sleeps, sorted(sleeps), sorted(sleeps, reverse=True)):
            started = now()
            pool.map(time.sleep, order)
            yield (now() - started) / ideal


def memory(ctx: Any) -> Iterator[float]:
    """What an idle worker has for itself (USS)."""
    import psutil  # noqa: PLC0415

    with warm_pool(ctx) as pool:
        pids: set[int] = set()
        while len(pids) < WORKERS:
            pids.update(pool.map(own_pid, [0.05] * 4, 1))
        sizes = [psutil.Process(pid).memory_full_info().uss / 2**20 for pid in pids]
        yield sum(sizes) / len(sizes)


CASES = {
    "submit": Case(submit, [Measure("submit", "tasks/s", "fork", ">= 5")]),
    "imap": Case(imap, [Measure("imap, chunks of 1", "items/s", "fork", ">= 5")]),
    "map": Case(
        map_,
        [
            Measure("map, chunks of 1", "items/s", "fork", ">= 5"),
            Measure("map", "items/s", "fork", ">= 1.3"),
        ],
    ),
    "roundtrip": Case(
        roundtrip,
        [
            Measure("round trip, median", "us", "fork", "<= 0.5"),
            Measure("round trip, 99 of 100", "us", "fork", "<= 0.3"),
        ],
    ),
    "startup": Case(
        startup,
        [
            Measure("a first pool: open, one task, close", "ms", "forkserver", "<= 0.5"),
            Measure("a second pool", "ms", "forkserver", ""),
        ],
    ),
    "process": Case(process, [Measure("a process: start, join", "ms", "forkserver", "<= 0.15")]),
    "skew": Case(
        skew,
        [
            Measure(f"skewed work, {order}", "x ideal", "fork", "<= 1.10", ratio=False)
            for order in ("random order", "ascending", "descending")
        ],
    ),
    "memory": Case(memory, [Measure("an idle worker's own memory", "MiB", "forkserver", "<= 0.5")]),
    "queue": Case(
        objects.queue,
        [
            Measure("a queue's small items", "items/s", "fork", ">= 5"),
            Measure("a queue's items of 1 MiB", "GB/s", "fork", ">= 5"),
            Measure("through a queue and back, median", "us", "fork", "<= 0.4"),
        ],
    ),
    "pipe": Case(
        objects.pipe,
        [
            Measure("through a pipe and back, median", "us", "fork", "<= 0.5"),
            Measure("a pipe's messages of 1 MiB", "GB/s", "fork", ">= 1.5"),
        ],
    ),
    "lock": Case(
        objects.lock,
        [
            Measure("a lock: acquire, release", "ns", "fork", "<= 1.1"),
            Measure("a semaphore: acquire, release", "ns", "fork", "<= 1.1"),
            Measure("`with` a lock", "ns", "fork", "<= 0.5"),
            Measure("`Event.is_set`", "ns", "fork", "<= 0.3"),
        ],
    ),
    "shared": Case(
        objects.shared,
        [
            Measure("`Value.value`", "ns", "fork", "<= 0.7"),
            Measure("`Array[i]`", "ns", "fork", "<= 0.25"),
            Measure("two processes at one `Value`", "additions/s", "fork", ">= 1.5"),
        ],
    ),
    "manager": Case(
        objects.manager,
        [
            Measure("a manager's start", "ms", "fork", "<= 1"),
            Measure("a managed dict's `d[k] = v`", "calls/s", "fork", ">= 5"),
            Measure("a managed dict's `d[k]`", "calls/s", "fork", ">= 5"),
        ],
    ),
}


def in_fresh_interpreter(case: str, library: str) -> list[float] | None:
    """The figures of one case, or None if it failed, with what it said on stderr."""
    command = [sys.executable, __file__, "--one", case, library]
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True)
    except subprocess.SubprocessError as error:
        print(f"{case} with {library}: {error}", file=sys.stderr)
        return None
    figures: list[float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def run_one(case: str, library: str) -> None:
    """Take the figures of one case, here."""
    # A worker of spawn imports this module by its name, and not as `__main__` again.
    sys.path.insert(0, str(Path(__file__).parent))
    module = importlib.import_module("bench")
    run, measures = module.CASES[case]
    ctx = importlib.import_module(library).get_context(measures[0].method)
    print(json.dumps(list(run(ctx))))


def meets(value: float, bar: str) -> bool:
    """Is ``value`` on the right side of a bar such as ``>= 5``? No bar, no wrong side."""
    if not bar:
        return True
    sign, _, limit = bar.partition(" ")
    return value >= float(limit) if sign == ">=" else value <= float(limit)


def shown(value: float) -> str:
    """Three significant digits, or a whole number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def row(measure: Measure, theirs: list[float], ours: list[float]) -> str:
    """A row of the table."""
    if not theirs or not ours:
        return f"| {measure.name} | {measure.method} | | | | failed |"
    them, us = statistics.median(theirs), statistics.median(ours)
    ratio = us / them
    judged = ratio if measure.ratio else us
    verdict = f"{measure.bar}: {'yes' if meets(judged, measure.bar) else '**no**'}"
    cells = [
        f"{measure.name} ({measure.unit})",
        measure.method,
        shown(them),
        shown(us),
        f"{ratio:.2f}",
        verdict if measure.bar else "",
    ]
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """The name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> int:
    """Measure, and print the table; 1 if a case could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=f"some of {','.join(CASES)}")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "LIBRARY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(*args.one)
        return 0
    libraries = ("multiprocessing", "phalanx")
    print(
        f"{os.cpu_count()} x {processor()}, Linux {platform.release()}, "
        f"CPython {platform.python_version()}, phalanx {metadata.version('phalanx')}, "
        f"medians of {args.rounds} rounds, load {os.getloadavg()[0]:.1f}\n\n"
        "| | start method | multiprocessing | phalanx | ratio | bar |\n"
        "|---|---|---:|---:|---:|---|",
        flush=True,
    )
    failed = False
    for name in args.only.split(",") if args.only else CASES:
        measures = CASES[name].measures
        figures: dict[str, list[list[float]]] = {library: [] for library in libraries}
        for _ in range(args.rounds):
            for library in libraries:
                got = in_fresh_interpreter(name, library)
                failed |= got is None
                if got is not None:
                    figures[library].append(got)
        for i, measure in enumerate(measures):
            theirs, ours = ([each[i] for each in figures[library]] for library in libraries)
            print(row(measure, theirs, ours), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
