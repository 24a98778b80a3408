"""The cases with large arguments and results."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import libraries
import numpy as np
import pools
import tasks
from cases import CONTEXTS, PHALANX, POOLS, case

now = time.perf_counter
MIB = 1 << 20
LARGE = (*POOLS, "ray")


def arguments(library: str, mib: int, number: int) -> Iterator[float]:
    """GB/s of different arrays, each of which a task sums up."""
    length = mib * MIB // 8
    arrays = [np.full(length, float(i)) for i in range(number)]
    pool = libraries.pool(library)
    pool.map(tasks.total, arrays[:4])
    began = now()
    sums = pool.map(tasks.total, arrays)
    took = now() - began
    assert [each / length for each in sums] == list(range(number))
    yield number * mib * MIB / took / 1e9
    pool.close()


def results(
    library: str, mib: int, number: int, task: Callable[..., Any] = tasks.filled
) -> Iterator[float]:
    """GB/s of arrays that tasks make, each of which is summed up here."""
    length = mib * MIB // 8
    wanted = [float(i) for i in range(number)]
    task = partial(task, length=length)
    pool = libraries.pool(library)
    pool.map(task, wanted[:4])
    began = now()
    sums = [tasks.total(array) for array in pool.map(task, wanted)]
    took = now() - began
    assert [each / length for each in sums] == list(range(number))
    yield number * mib * MIB / took / 1e9
    pool.close()


@case(LARGE, ("arrays of 8 MiB as arguments", "GB/s"), rounds=3)
def arguments_8(library: str) -> Iterator[float]:
    yield from arguments(library, 8, 20)


@case(LARGE, ("arrays of 64 MiB as arguments", "GB/s"), rounds=3)
def arguments_64(library: str) -> Iterator[float]:
    yield from arguments(library, 64, 8)


@case(LARGE, ("arrays of 8 MiB as results", "GB/s"), rounds=3)
def results_8(library: str) -> Iterator[float]:
    yield from results(library, 8, 20)


@case(LARGE, ("arrays of 64 MiB as results", "GB/s"), rounds=3)
def results_64(library: str) -> Iterator[float]:
    yield from results(library, 64, 8)


@case(PHALANX, ("arrays of 64 MiB as results, on loan", "GB/s"), rounds=3)
def results_on_loan(library: str) -> Iterator[float]:
    yield from results(library, 64, 8, tasks.filled_on_loan)


@case(
    (*CONTEXTS, "joblib", "ray"),
    ("one array of 64 MiB as an argument of 1,000 tasks", "tasks/s"),
    rounds=3,
)
def same(library: str) -> Iterator[float]:
    """In one map, each a task of its own: within a chunk pickle itself would copy it only once.

    Those that copy it for every task get fewer tasks.
    """
    number = 1_000 if library.startswith("phalanx") else 16
    array = np.full(8 * MIB, 7.0)
    pool = pools.warm(libraries.pool(library))
    began = now()
    assert pool.map(tasks.first, [array] * number, 1) == [7.0] * number
    yield number / (now() - began)
    pool.close()


def large_objects(kind: str, number: int) -> list[Any]:
    """Different objects of 64 MiB."""
    size = 64 * MIB
    if kind == "bytes":
        return [bytes([i]) * size for i in range(number)]
    if kind == "bytearray":
        return [bytearray(bytes([i]) * size) for i in range(number)]
    arrays = [np.full(size // 8, float(i)) for i in range(number)]
    if kind == "nested":
        quarters = [np.split(array, 4) for array in arrays]
        return [{"arrays": [a, b], "more": ({"c": c}, [d])} for a, b, c, d in quarters]
    if kind == "pandas":
        import pandas as pd  # noqa: PLC0415

        return [pd.DataFrame({"a": a, "b": b}) for a, b in (np.split(a, 2) for a in arrays)]
    import pyarrow as pa  # noqa: PLC0415

    return [pa.table({"a": array}) for array in arrays]


KINDS = {
    "bytes": "`bytes`",
    "bytearray": "`bytearray`",
    "pandas": "a pandas table",
    "arrow": "an Arrow table",
    "nested": "arrays in dicts and lists",
}


@case(
    CONTEXTS,
    *((f"{said} of 64 MiB, there and back", "GB/s") for said in KINDS.values()),
    rounds=2,
)
def objects_64(library: str) -> Iterator[float]:
    number = 2
    pool = pools.warm(libraries.pool(library))
    for kind in KINDS:
        sent = large_objects(kind, number)
        pool.map(tasks.identity, sent, 1)
        began = now()
        got = pool.map(tasks.identity, sent, 1)
        yield 2 * number * 64 * MIB / (now() - began) / 1e9
        assert len(got) == number
    pool.close()
