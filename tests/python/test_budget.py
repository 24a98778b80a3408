"""Pools in tasks, and threads of libraries there, share the processors of the outermost pool."""

import os

import numpy as np
import phalanx
import pytest
import threadpoolctl
from phalanx import _budget

CPUS = "8"  # that this program is told it may use


@pytest.fixture(autouse=True)
def _told(monkeypatch):
    monkeypatch.setenv("PYTHON_CPU_COUNT", CPUS)
    for name in _budget.VARIABLES:
        monkeypatch.delenv(name, raising=False)


def workers_of_a_pool_in_here(method: str) -> int:
    with phalanx.get_context(method).Pool() as pool:
        return len(pool._pool)


def workers_two_pools_down(method: str) -> tuple[int, int]:
    with phalanx.get_context(method).Pool(2) as pool:
        return pool.apply(workers_of_a_pool_in_here, (method,)), len(pool._pool)


def workers_of_an_executor_in_here() -> int:
    with phalanx.ProcessPoolExecutor() as executor:
        return executor._max_workers


def variables() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in _budget.VARIABLES}


def threads_of_numpy() -> set[int]:
    np.ones((2, 2)) @ np.ones((2, 2))
    return {each["num_threads"] for each in threadpoolctl.threadpool_info()}


def test_a_pool_in_a_task_has_its_workers_share_of_the_processors(ctx):
    with ctx.Pool(2) as pool:
        assert pool.apply(workers_of_a_pool_in_here, (ctx._name,)) == 4
        assert pool.apply(workers_two_pools_down, (ctx._name,)) == (2, 2)
        assert pool.apply(workers_of_an_executor_in_here) == 4
    with ctx.Pool(16) as pool:
        assert pool.apply(workers_of_a_pool_in_here, (ctx._name,)) == 1
    assert workers_of_a_pool_in_here(ctx._name) == 8


def test_libraries_are_told_to_start_as_many_threads_as_that(ctx):
    alone = phalanx._phalanx.default_processes() == 1  # then they start no more in any case
    with ctx.Pool(8) as pool:
        assert set(pool.apply(variables).values()) == {None if alone else "1"}
        assert pool.apply(threads_of_numpy) == {1}
    assert set(variables().values()) == {None}


def test_threads_per_worker_says_how_many(ctx):
    with ctx.Pool(1, threads_per_worker=3) as pool:
        assert set(pool.apply(variables).values()) == {"3"}
    with pytest.raises(ValueError, match="threads_per_worker"):
        ctx.Pool(1, threads_per_worker=0)


def test_what_the_program_has_set_stays(ctx, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with ctx.Pool(8) as pool:
        told = pool.apply(variables)
        assert told.pop("OMP_NUM_THREADS") == "5"
        assert set(told.values()) == {None}
