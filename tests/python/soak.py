"""Work under random deaths, for as long as one likes: every task is accounted for exactly once.

    python tests/python/soak.py --seconds 600 --seed 1

Threads call a pool in all its ways, with tasks of mixed length and size, timeouts, cancellations,
retries, and pools in tasks, while another thread kills and stops its workers and the fork server's
template. The seed decides who does what when; the machine decides the rest. It fails if

- a task ends otherwise than with its result or with an error that has a name,
- one that returned has not been run exactly once, or one that failed more than once (those with
  retries excepted),
- a call takes longer than ``PATIENCE``,
- memory grows, or a process, thread, descriptor or file is left.
"""

import argparse
import collections
import contextlib
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import phalanx
from leaks import Holdings, adopt_orphans, leaked_since

WORKERS = 4
CALLERS = 3
METHODS = ("forkserver", "spawn", "fork")
PATIENCE = 20.0  # seconds that a call may take: far more than any needs
GROWTH = 64 << 20  # bytes that this process may grow after it has warmed up
WARM = 0.25  # of the time, after which it has
MOST = 1 << 26  # tasks of one run
ROUND = 30.0  # seconds that a pool lives

#: Each of these is an end that a task may have.
NAMED = (phalanx.WorkerDied, phalanx.TaskTimeout, phalanx.TaskCancelled, ZeroDivisionError)

# -- what tasks do

#: How often each task has been begun.
runs: Any = None


def begin(shared: object) -> None:
    """Prepare a process."""
    global runs  # noqa: PLW0603
    runs = shared


def mark(task: int) -> int:
    """Say that a task has begun. Two that do so at once would be a defect, so there is no lock."""
    runs[task] += 1
    return task


def square(task: int) -> int:
    return mark(task) ** 2


def check(task: int, data: bytes) -> tuple[int, bytes]:
    """The checksum of what came, and something as large."""
    mark(task)
    return zlib.crc32(data), data[::-1]


def sleep(task: int, seconds: float) -> int:
    mark(task)
    time.sleep(seconds)
    return task


def fail(task: int) -> None:
    mark(task)
    raise ZeroDivisionError(task)


def nest(task: int, method: str) -> list[int]:
    """A pool in a task."""
    mark(task)
    with phalanx.get_context(method).Pool(2) as pool:
        return pool.map(abs, range(-5, 0), 1)


# -- who calls


class Ledger:
    """What became of all tasks."""

    def __init__(self) -> None:
        self.ends: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.submitted = self.ended = 0
        self._lock = threading.Lock()

    def numbers(self, count: int) -> range:
        """Take numbers for so many tasks."""
        with self._lock:
            start = self.submitted
            self.submitted += count
        if self.submitted > MOST:
            raise RuntimeError("more tasks than there are numbers")
        return range(start, start + count)

    def note(self, tasks: range, end: object, expected: object = None, runs_each: int = 1) -> None:
        """Enter what some tasks have come to: their result, or an exception.

        ``runs_each`` is how often each of them may have been run.
        """
        failed = isinstance(end, BaseException)
        name = type(end).__name__ if failed else "returned"
        if failed and not isinstance(end, NAMED):
            self.complain(f"tasks {tasks}: {end!r}")
        elif not failed and end != expected:
            self.complain(f"tasks {tasks}: a wrong result")
        for task in tasks:
            count = runs[task]
            if count > runs_each or (not failed and not count):
                self.complain(f"task {task} {name} after {count} runs")
        with self._lock:
            self.ends[name] += len(tasks)
            self.ended += len(tasks)

    def complain(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)


class Caller:
    """One thread's calls of a pool."""

    def __init__(self, pool: "phalanx.pool.Pool", ledger: Ledger, seed: str, method: str) -> None:
        self.pool = pool
        self.ledger = ledger
        self.method = method
        self.random = random.Random(seed)

    def call(self) -> None:
        """Make a call of some kind, and account for it."""
        kinds = [self.burst, self.whole_map, self.stream, self.large]
        rare = [self.overtime, self.cancelled, self.failing, self.again, self.nested, self.all_gone]
        kind = self.random.choice(kinds * 3 + rare)
        start = time.monotonic()
        kind()
        if time.monotonic() - start > PATIENCE:
            self.ledger.complain(f"{kind.__name__} took {time.monotonic() - start:.0f} s")

    def end_of(self, get: Callable[[float], object]) -> object:
        """A result, or what was raised instead."""
        try:
            return get(PATIENCE)
        except StopIteration:
            raise
        except Exception as error:
            return error

    def burst(self) -> None:
        tasks = self.ledger.numbers(self.random.randrange(1, 300))
        results = [self.pool.apply_async(square, (task,)) for task in tasks]
        for task, result in zip(tasks, results, strict=True):
            end = self.end_of(result.get)
            self.ledger.note(range(task, task + 1), end, task**2)

    def whole_map(self) -> None:
        tasks = self.ledger.numbers(self.random.randrange(1, 3000))
        chunk = self.random.choice([None, 1, 7, 100])
        result = self.pool.map_async(square, tasks, chunk)
        end = self.end_of(result.get)
        if isinstance(end, BaseException):
            # Told at once; the others run on, and are not to be seen any more.
            with contextlib.suppress(Exception):
                result.cancel()
        self.ledger.note(tasks, end, [task**2 for task in tasks])

    def stream(self) -> None:
        tasks = self.ledger.numbers(self.random.randrange(1, 500))
        ends = self.pool.imap(square, iter(tasks))
        for task in tasks:
            end = self.end_of(ends.next)
            self.ledger.note(range(task, task + 1), end, task**2)

    def large(self) -> None:
        tasks = self.ledger.numbers(self.random.randrange(1, 8))
        sent = [self.random.randbytes(int(2 ** self.random.uniform(0, 21))) for _ in tasks]
        results = [
            self.pool.apply_async(check, (task, data))
            for task, data in zip(tasks, sent, strict=True)
        ]
        for task, data, result in zip(tasks, sent, results, strict=True):
            end = self.end_of(result.get)
            self.ledger.note(range(task, task + 1), end, (zlib.crc32(data), data[::-1]))

    def overtime(self) -> None:
        tasks = self.ledger.numbers(1)
        seconds = self.random.choice([0.0, 0.05, 60.0])
        result = self.pool.apply_async(sleep, (tasks[0], seconds), timeout=0.05)
        self.ledger.note(tasks, self.end_of(result.get), tasks[0])

    def cancelled(self) -> None:
        tasks = self.ledger.numbers(self.random.randrange(1, 5))
        results = [self.pool.apply_async(sleep, (task, 60.0)) for task in tasks]
        time.sleep(self.random.uniform(0, 0.02))
        for task, result in zip(tasks, results, strict=True):
            result.cancel()
            end = self.end_of(result.get)
            self.ledger.note(range(task, task + 1), end, task)

    def failing(self) -> None:
        tasks = self.ledger.numbers(1)
        end = self.end_of(self.pool.apply_async(fail, (tasks[0],)).get)
        self.ledger.note(tasks, end, "what it cannot return")

    def again(self) -> None:
        tasks = self.ledger.numbers(20)
        results = [
            self.pool.apply_async(sleep, (task, 0.001), retries=100, backoff=0.001)
            for task in tasks
        ]
        for task, result in zip(tasks, results, strict=True):
            end = self.end_of(result.get)
            self.ledger.note(range(task, task + 1), end, task, runs_each=101)

    def nested(self) -> None:
        tasks = self.ledger.numbers(1)
        end = self.end_of(self.pool.apply_async(nest, (tasks[0], self.method)).get)
        self.ledger.note(tasks, end, [5, 4, 3, 2, 1])

    def all_gone(self) -> None:
        """Also what others have submitted: they get errors that have a name."""
        if self.random.random() < 0.1:
            self.pool.cancel_all()


# -- who kills


class Killer:
    """Kills and stops workers, and the template."""

    def __init__(self, pool: "phalanx.pool.Pool", seed: str) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.done: collections.Counter[str] = collections.Counter()

    def strike(self) -> None:
        """Wait a little, and strike."""
        time.sleep(self.random.expovariate(20))
        template = phalanx.forkserver._forkserver._forkserver_pid
        if template and self.random.random() < 0.02:
            self.hit("template", template, self.random.choice(["kill", "stop"]))
            return
        # So does one to which that happens many times in a row: most are let come so far.
        early = self.random.random() < 0.1
        stats = [worker for worker in self.pool.stats() if worker.pid]
        pids = [it.pid for it in stats if early or it.returned or it.running is not None]
        if pids:
            how = self.random.choice(["kill", "kill", "stop"])
            self.hit("worker", self.random.choice(pids), how)

    def hit(self, whom: str, pid: int, how: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            if how == "kill":
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.random.uniform(0, 0.1))
                os.kill(pid, signal.SIGCONT)
            self.done[f"{whom}s {'killed' if how == 'kill' else 'stopped'}"] += 1


# -- the whole


def memory() -> int:
    """Bytes of memory that this process has for itself."""
    _, whole, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (whole - shared) * os.sysconf("SC_PAGE_SIZE")


def one_pool(method: str, until: float, seed: str, ledger: Ledger) -> collections.Counter[str]:
    """Let a pool live and suffer until then."""
    context = phalanx.get_context(method)
    pool = context.Pool(WORKERS, begin, (runs,), grace=0.2)
    pool.apply(abs, (1,))  # one whose first workers all die before they are ready gives up
    killer = Killer(pool, f"{seed} killer")
    callers = [Caller(pool, ledger, f"{seed} {number}", method) for number in range(CALLERS)]
    over = threading.Event()

    def repeat(act: Callable[[], None]) -> None:
        try:
            while not over.is_set():
                act()
        except BaseException as error:
            ledger.complain(f"{act.__qualname__}: {error!r}")
            raise

    threads = [threading.Thread(target=repeat, args=(caller.call,)) for caller in callers]
    strikes = threading.Thread(target=repeat, args=(killer.strike,))
    for thread in [*threads, strikes]:
        thread.start()
    over.wait(max(0.0, until - time.monotonic()))
    over.set()
    for thread in [*threads, strikes]:
        thread.join()
    pool.close()
    pool.join()
    return killer.done


def main() -> int:
    """Run for some time, and say what happened; 1 if anything of it was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    print(f"soak: seed {options.seed}, {options.seconds:.0f} s, {sys.version.split()[0]}")
    # Whatever hangs says where, and ends.
    faulthandler.dump_traceback_later(options.seconds + 2 * PATIENCE, exit=True)
    adopt_orphans()
    begin(phalanx.RawArray("B", MOST))
    ledger = Ledger()
    strikes: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    before: Holdings | None = None
    warm = 0
    methods = options.methods.split(",")
    number = 0
    while (now := time.monotonic()) < start + options.seconds:
        method = methods[number % len(methods)]
        until = min(now + min(ROUND, options.seconds / 6), start + options.seconds)
        strikes += one_pool(method, until, f"{options.seed} {number}", ledger)
        number += 1
        if number == len(methods):  # each method has what it starts once a process
            before = Holdings()
        if not warm and time.monotonic() > start + options.seconds * WARM:
            warm = memory()
    grown = memory() - (warm or memory())
    phalanx.forkserver._forkserver._stop()
    if before is not None:
        helpers = {phalanx.resource_tracker._resource_tracker._pid or 0}
        for leak in leaked_since(before, 5.0, frozenset(helpers)):
            ledger.complain(f"left behind: {leak}")
    if grown > GROWTH:
        ledger.complain(f"memory grew by {grown >> 20} MiB")
    if ledger.submitted != ledger.ended:
        ledger.complain(f"{ledger.submitted} tasks submitted, {ledger.ended} ended")
    seconds = time.monotonic() - start
    print(f"{number} pools, {dict(strikes)}, memory {grown / 2**20:+.1f} MiB")
    print(f"{ledger.submitted} tasks in {seconds:.0f} s: {dict(ledger.ends)}")
    for complaint in ledger.wrong[:20]:
        print(f"WRONG: {complaint}")
    verdict = "failed" if ledger.wrong else "passed"
    print(f"soak: {verdict}, {ledger.ended} tasks accounted for, {len(ledger.wrong)} complaints")
    return 1 if ledger.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
