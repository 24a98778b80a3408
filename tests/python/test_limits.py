"""What workers are held to: memory, a life span, and how often they may die."""

import os
import pickle
import signal
import time

import numpy as np
import phalanx
import pytest
from tasks import Log, nothing, pid_of_worker, slow_pid, wait_until

MIB = 1 << 20
SOON = 10.0  # seconds within which an end is told: far below those that the tasks would take
FOREVER = 600

kept: list[bytearray] = []


def touch(size: int) -> bytearray:
    """So many bytes of memory that are really there."""
    return bytearray(size)  # which writes zeros


def keep(size: int) -> int:
    kept.append(touch(size))
    return os.getpid()


def hold(size: int) -> None:
    kept.append(touch(size))
    time.sleep(FOREVER)


def grow(log: Log) -> None:
    try:
        while True:
            kept.append(touch(MIB))
            time.sleep(0.001)
    except MemoryError as error:
        kept.clear()
        log.add(type(error).__name__)
        raise


def grow_in_the_end(log: Log, size: int) -> None:
    """Between the limits first, above both then."""
    kept.append(touch(size))
    log.add("grown")
    time.sleep(0.3)
    hold(size)


def view(data: np.ndarray) -> int:
    time.sleep(0.2)
    return int(data.sum())


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(log: Log, kind: type[BaseException], times: int) -> int:
    log.add("run")
    count = len(log.lines())
    if count <= times:
        raise kind(count)
    return count


def fail_with_data(log: Log, data: bytearray) -> int:
    fail(log, ConnectionError, 1)
    return data.count(b"x")


def fail_once_for_each(log: Log, item: int) -> int:
    log.add(item)
    if log.lines().count(str(item)) == 1:
        raise ConnectionError(item)
    return item


def fail_and_catch(log: Log) -> None:
    """Catches, in the same task, what would be a reason, and fails of another."""
    try:
        fail(log, ConnectionError, 100)
    except ConnectionError:
        raise ValueError("another one") from None


class OwnError(Exception):
    """A program's own."""


# -- memory


def test_a_task_with_too_much_memory_is_ended_and_its_worker_alone(ctx):
    with ctx.Pool(2, memory_limit=200 * MIB) as pool:
        start = time.monotonic()
        greedy = pool.apply_async(hold, (400 * MIB,))
        others = pool.map_async(pid_of_worker, range(100), 1)
        with pytest.raises(phalanx.WorkerMemoryExceeded, match="more than 209715200") as caught:
            greedy.get()
        assert time.monotonic() - start < SOON
        error = caught.value
        assert isinstance(error, MemoryError)
        assert error.used > error.allowed == 200 * MIB
        assert error.task == "test_limits.hold"
        assert "hold" in error.stack
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.used, again.allowed) == (str(error), error.used, error.allowed)
        wait_until(lambda: error.pid not in [it.pid for it in pool.stats()], "the next worker")
        assert len(others.get()) == 100


def test_a_task_is_told_first_and_can_clean_up(ctx, log):
    with ctx.Pool(1, memory_limit=150 * MIB) as pool:
        with pytest.raises(phalanx.WorkerMemoryExceeded) as caught:
            pool.apply(grow, (log,))
        assert log.lines() == ["WorkerMemoryExceeded"]
        assert caught.value.exitcode is None
        # What it has left behind in its worker goes with that.
        wait_until(lambda: pool.stats()[0].pid not in (None, caught.value.pid), "the next worker")
        assert pool.apply(pid_of_worker) != caught.value.pid


def test_above_the_soft_limit_a_worker_is_replaced_after_its_task(ctx):
    with ctx.Pool(1, memory_limit=(150 * MIB, None)) as pool:
        first = pool.apply(keep, (200 * MIB,))
        wait_until(lambda: pool.apply(pid_of_worker) != first, "the next worker")
        assert pool.apply(pid_of_worker) == pool.apply(pid_of_worker)


def test_many_small_tasks_that_leak_are_seen_too(ctx):
    with ctx.Pool(1, memory_limit=(150 * MIB, None)) as pool:
        pids = pool.map(keep, [MIB // 4] * 2000, 1)
        assert len(set(pids)) > 1
        assert pool.stats()[0].started == len(set(pids))


def test_above_the_soft_limit_the_hard_one_holds_still(ctx, log):
    with ctx.Pool(1, memory_limit=(100 * MIB, 250 * MIB)) as pool:
        with pytest.raises(phalanx.WorkerMemoryExceeded, match="more than 262144000"):
            pool.apply(grow_in_the_end, (log, 160 * MIB))
        assert log.lines() == ["grown"]


def test_large_arguments_are_not_a_workers_own(ctx):
    data = np.ones(200 * MIB, np.uint8)
    with ctx.Pool(1, memory_limit=150 * MIB) as pool:
        assert pool.apply(view, (data,)) == len(data)


def test_what_a_forked_worker_shares_with_its_parent_is_not_its_own():
    inherited = touch(300 * MIB)
    with phalanx.get_context("fork").Pool(1, memory_limit=(150 * MIB, 200 * MIB)) as pool:
        first = pool.apply(keep, (MIB,))
        assert pool.map(slow_pid, [0.01] * 30, 1) == [first] * 30
        with pytest.raises(phalanx.WorkerMemoryExceeded):
            pool.apply(hold, (400 * MIB,))
    assert len(inherited) == 300 * MIB


# -- life


def test_a_worker_is_replaced_when_its_time_is_over_and_loses_nothing(ctx):
    with ctx.Pool(2, lifetime=0.2) as pool:
        pids = set()

        def is_replaced() -> bool:
            assert pool.map(abs, range(100), 1) == list(range(100))
            pids.update(pool.map(pid_of_worker, range(4), 1))
            return len(pids) > 3

        wait_until(is_replaced, "more workers than two")


def test_a_task_that_runs_longer_is_not_ended(ctx):
    with ctx.Pool(1, lifetime=0.1) as pool:
        assert pool.apply(time.sleep, (0.4,)) is None


# -- deaths


def test_too_many_deaths_end_the_pool_which_tells_them_all(ctx):
    with ctx.Pool(2, intensity=2, period=60) as pool:
        waiting = pool.apply_async(time.sleep, (FOREVER,))
        for _ in range(3):
            with pytest.raises(phalanx.WorkerDied):
                pool.apply(die)
        with pytest.raises(phalanx.SupervisorFailed, match="more than 2 restarts in 60 s") as told:
            waiting.get(SOON)
        assert [death.exitcode for death in told.value.deaths] == [-signal.SIGKILL] * 3
        with pytest.raises(phalanx.SupervisorFailed):
            pool.apply(nothing)


def test_ends_by_the_pools_own_rules_are_no_deaths(ctx):
    with ctx.Pool(1, maxtasksperchild=1, intensity=0, lifetime=10) as pool:
        assert len(set(pool.map(pid_of_worker, range(4), 1))) == 4
        for _ in range(2):
            with pytest.raises(phalanx.TaskTimeout):
                pool.apply(time.sleep, (FOREVER,), timeout=0.1)
    with ctx.Pool(1, memory_limit=(100 * MIB, 300 * MIB), intensity=0) as pool:
        pool.apply(keep, (200 * MIB,))
        with pytest.raises(phalanx.WorkerMemoryExceeded):
            pool.apply(hold, (400 * MIB,))
        assert pool.apply(abs, (-1,)) == 1


# -- failures that are worth another try


def test_what_a_task_raises_is_a_reason_if_that_is_said(pool, log, tmp_path):
    assert pool.apply(fail, (log, ConnectionResetError, 2), retries=2, retry_on=OSError) == 3
    for kind, given in [(ConnectionError, 3), (KeyError, 1)]:
        tries = Log(tmp_path / kind.__name__)
        with pytest.raises(kind) as caught:
            pool.apply(fail, (tries, kind, 9), retries=2, retry_on=(OSError, ValueError))
        assert len(tries.lines()) == given
        assert caught.value.args == (given,)
        assert "in fail" in str(caught.value.__cause__)


def test_a_pool_may_say_so_for_all_and_a_call_otherwise(ctx, log, tmp_path):
    with ctx.Pool(1, retries=3, retry_on=OwnError, backoff=0.01) as pool:
        assert pool.apply(fail, (log, OwnError, 3)) == 4
        for number, asked in enumerate([{"retry_on": KeyError}, {"retry_on": ()}, {"retries": 0}]):
            tries = Log(tmp_path / str(number))
            with pytest.raises(OwnError):
                pool.apply(fail, (tries, OwnError, 9), **asked)
            assert len(tries.lines()) == 1


def test_in_a_map_one_item_is_tried_again_and_not_those_beside_it(pool, log):
    items = [(log, item) for item in range(10)]
    terms = {"retries": 1, "retry_on": ConnectionError}
    assert pool.starmap(fail_once_for_each, items, **terms) == list(range(10))
    assert len(log.lines()) == 20


def test_deaths_and_failures_are_of_one_number(pool, log):
    with pytest.raises(ConnectionError, match="3"):
        pool.apply(die_then_fail, (log,), retries=2, retry_on=ConnectionError)


def die_then_fail(log: Log) -> None:
    if not log.lines():
        log.add("run")
        die()
    fail(log, ConnectionError, 100)


def test_large_arguments_are_there_again_after_a_failure(pool, log):
    data = bytearray(b"x" * (4 * MIB))
    terms = {"retries": 1, "retry_on": ConnectionError}
    assert pool.apply(fail_with_data, (log, data), **terms) == len(data)


def test_what_a_task_has_caught_is_no_reason(pool, log):
    with pytest.raises(ValueError, match="another one"):
        pool.apply(fail_and_catch, (log,), retries=3, retry_on=ConnectionError)
    assert log.lines() == ["run"]


def test_lambdas_are_tried_again_too(pool, log):
    terms = {"retries": 2, "retry_on": ConnectionError}
    assert pool.apply(lambda: fail(log, ConnectionError, 2), **terms) == 3


def test_limits_that_make_no_sense_are_refused(ctx, pool):
    for bad in (0, -1, 1.5, (2, 1), (None, 0)):
        with pytest.raises(ValueError, match="memory_limit"):
            ctx.Pool(1, memory_limit=bad)
    with pytest.raises(ValueError, match="lifetime"):
        ctx.Pool(1, lifetime=-1)
    with pytest.raises(ValueError, match="intensity"):
        ctx.Pool(1, intensity=-1)
    with pytest.raises(ValueError, match="period"):
        ctx.Pool(1, period=-1)
    for worse in (3, "OSError", (OSError, 3), [OSError]):
        with pytest.raises(TypeError, match="retry_on"):
            pool.apply(nothing, retries=1, retry_on=worse)
    with pytest.raises(ValueError, match="say retries="):
        pool.apply(nothing, retry_on=OSError)
