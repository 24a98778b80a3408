"""Count the tokens of every source file of Python's standard library, on all cores.

    python count_tokens.py            serially, with multiprocessing and with phalanx, and compare
    python count_tokens.py --kill     with phalanx, one worker being killed half-way

The files are handed out lazily with ``imap_unordered``, and the totals of all runs have to
agree. A file that is no valid Python (the library has some, to test that) counts as skipped.
"""

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import sysconfig
import time
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import phalanx

PROCESSES = len(os.sched_getaffinity(0))
REDRAW = 0.1  # seconds between two states of the progress line


class Count(NamedTuple):
    """What one file, or all of them, came to."""

    files: int = 0
    skipped: int = 0
    tokens: int = 0

    def __add__(self, other: "Count") -> "Count":  # type: ignore[override]
        return Count(*map(sum, zip(self, other, strict=True)))

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens in {self.files:,} files, {self.skipped} skipped"


class Counted(NamedTuple):
    """A file and its count."""

    path: str
    count: Count


def count_tokens(path: str) -> Counted:
    """The task: the tokens of one file."""
    try:
        with tokenize.open(path) as source:
            tokens = sum(1 for _ in tokenize.generate_tokens(source.readline))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return Counted(path, Count(skipped=1))
    return Counted(path, Count(files=1, tokens=tokens))


def sources() -> Iterator[str]:
    """The source files of the running Python's standard library."""
    for folder, names, files in os.walk(sysconfig.get_path("stdlib")):
        names[:] = sorted(set(names) - {"site-packages", "__pycache__"})
        for file in sorted(files):
            if file.endswith(".py"):
                yield os.path.join(folder, file)


def progress(counted: Iterable[Counted], total: int, title: str) -> Iterator[Counted]:
    """Pass ``counted`` on, showing how far it is on a terminal."""
    if not sys.stderr.isatty():
        yield from counted
        return
    started = shown = time.monotonic()
    for done, each in enumerate(counted, 1):
        yield each
        now = time.monotonic()
        if now - shown > REDRAW or done == total:
            shown = now
            rate = done / (now - started)
            line = f"\r{title}: {done} of {total} files, {rate:,.0f} a second\x1b[K"
            print(line, end="", file=sys.stderr, flush=True)
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def total(counted: Iterable[Counted]) -> Count:
    """The sum of all files."""
    return functools.reduce(lambda sum_, each: sum_ + each.count, counted, Count())


def serially() -> Iterator[Counted]:
    """One file after the other, in this process."""
    return map(count_tokens, sources())


def in_pool(library: object) -> Iterator[Counted]:
    """As they come, from a pool of ``library``."""
    with library.Pool(PROCESSES) as pool:  # type: ignore[attr-defined]
        yield from pool.imap_unordered(count_tokens, sources())


def compare() -> bool:
    """Print seconds and speed-up of each way; do their totals agree?"""
    ways: dict[str, Callable[[], Iterator[Counted]]] = {
        "serial": serially,
        "multiprocessing": functools.partial(in_pool, multiprocessing),
        "phalanx": functools.partial(in_pool, phalanx),
    }
    number = sum(1 for _ in sources())
    counts, seconds = {}, {}
    for way, run in ways.items():
        started = time.perf_counter()
        counts[way] = total(progress(run(), number, way))
        seconds[way] = time.perf_counter() - started
    print(f"{counts['serial']}; {PROCESSES} processes")
    for way, count in counts.items():
        speedup = seconds["serial"] / seconds[way]
        agrees = "" if count == counts["serial"] else f"  BUT {count}"
        print(f"  {way:<16} {seconds[way]:6.2f} s   {speedup:4.2f}x{agrees}")
    return len(set(counts.values())) == 1


def survive() -> bool:
    """Kill a worker half-way; is exactly the file it was at missing from the totals?"""
    paths = list(sources())
    expected = {each.path: each.count for each in serially()}
    got: dict[str, Count] = {}
    lost: list[phalanx.WorkerDied] = []
    with phalanx.Pool(PROCESSES) as pool:
        results = pool.imap_unordered(count_tokens, paths)
        while True:
            try:
                path, count = next(results)
            except StopIteration:
                break
            except phalanx.WorkerDied as died:
                lost.append(died)
                continue
            got[path] = count
            if len(got) == len(paths) // 2:
                victim = pool._pool[0].pid
                os.kill(victim, signal.SIGKILL)
                print(f"killed worker {victim} after {len(got)} of {len(paths)} files")
    missing = [path for path in paths if path not in got]
    for path in missing:
        print(f"lost: {Path(path).relative_to(sysconfig.get_path('stdlib'))}")
    for died in lost:
        print(f"because {died}")
    if not lost:
        print("lost: nothing, the worker was between two files")
    print(f"the rest: {total(Counted(*each) for each in got.items())}")
    return len(lost) == len(missing) <= 1 and all(expected[path] == got[path] for path in got)


def main() -> int:
    """Run as the command line says; 0 if the totals are right."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kill", action="store_true", help="kill a worker half-way")
    right = survive() if parser.parse_args().kill else compare()
    if not right:
        print("the totals are wrong", file=sys.stderr)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
