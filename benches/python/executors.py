"""phalanx.ProcessPoolExecutor against the standard library's, in turn, in one run.

    python benches/python/executors.py [ROUNDS]

Two workers, forkserver. ``nothing`` is an executor that calls the function at once: what is left
is the cost of futures and of asyncio itself, which no executor can be faster than.
"""

import asyncio
import concurrent.futures
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import phalanx

COUNT = 10_000
now = time.perf_counter


def identity(x: Any) -> Any:
    return x


class Nothing(concurrent.futures.Executor):
    """Completes each future before it returns it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(fn(*args, **kwargs))
        return future


def submit(executor: concurrent.futures.Executor) -> float:
    """Calls a second: all are submitted, then each result is taken."""
    began = now()
    futures = [executor.submit(identity, n) for n in range(COUNT)]
    assert [future.result() for future in futures] == list(range(COUNT))
    return COUNT / (now() - began)


def gather(executor: concurrent.futures.Executor) -> float:
    """Calls a second of asyncio, all at once."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = now()
        calls = (loop.run_in_executor(executor, identity, n) for n in range(COUNT))
        assert await asyncio.gather(*calls) == list(range(COUNT))
        return COUNT / (now() - began)

    return asyncio.run(main())


def round_trip(executor: concurrent.futures.Executor) -> float:
    """Round trips a second, one after the other."""
    count = COUNT // 10
    began = now()
    for n in range(count):
        executor.submit(identity, n).result()
    return count / (now() - began)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    theirs = multiprocessing.get_context("forkserver")
    executors = {
        "standard": concurrent.futures.ProcessPoolExecutor(2, theirs),
        "phalanx": phalanx.ProcessPoolExecutor(2, phalanx.get_context("forkserver")),
        "nothing": Nothing(),
    }
    rates: dict[tuple[str, str], list[float]] = {}
    for executor in executors.values():
        submit(executor)
    for _ in range(rounds):
        for measure in (submit, gather, round_trip):
            for name, executor in executors.items():
                rates.setdefault((measure.__name__, name), []).append(measure(executor))
    for executor in executors.values():
        executor.shutdown()
    for measure in (submit, gather, round_trip):
        medians = {n: statistics.median(rates[measure.__name__, n]) for n in executors}
        said = ", ".join(f"{name} {rate:,.0f}" for name, rate in medians.items())
        times = medians["phalanx"] / medians["standard"]
        print(f"{measure.__name__}: {said} calls a second; phalanx {times:.1f}x standard")


if __name__ == "__main__":
    main()
