"""The rates of the phalanx that is installed here, to compare two builds of it.

    PYTHONPATH=one/build python benches/python/rates.py
    PYTHONPATH=another   python benches/python/rates.py

Prints one line: the file of the extension, and calls a second with two workers, best of five.
"""

import time
from collections.abc import Callable
from typing import Any

import phalanx
from phalanx import _phalanx

ROUNDS = 5
now = time.perf_counter


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def best(run: Callable[[], int]) -> float:
    """Calls a second in the best of some rounds of ``run``, which returns how many it made."""
    rates = []
    for _ in range(ROUNDS):
        began = now()
        count = run()
        rates.append(count / (now() - began))
    return max(rates)


def main() -> None:
    with phalanx.get_context("fork").Pool(2) as pool:

        def submit() -> int:
            results = [pool.apply_async(identity, (n,)) for n in range(20_000)]
            return len([result.get() for result in results])

        def imap() -> int:
            return sum(1 for _ in pool.imap(square, range(50_000)))

        def map_ones() -> int:
            return len(pool.map(square, range(50_000), 1))

        def map_default() -> int:
            return len(pool.map(square, range(1_000_000)))

        pool.map(square, range(1000), 1)
        rates = [
            f"{run.__name__} {best(run):,.0f}" for run in (submit, imap, map_ones, map_default)
        ]
    print(_phalanx.__file__, *rates, sep="  ")


if __name__ == "__main__":
    main()
