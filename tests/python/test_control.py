"""Tasks that are ended before they end by themselves, and tasks that are run again."""

import contextlib
import ctypes
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import phalanx
import pytest
from tasks import Log, identity, nothing, pid_of_worker, wait_until

LIMIT = 0.2  # seconds that tasks get which are to run into it
SOON = 5.0  # seconds within which an end is told: far below those that the tasks would take
FOREVER = 600


def started(log: Log) -> int:
    log.add(os.getpid())
    return os.getpid()


def spin(log: Log) -> None:
    started(log)
    while True:
        pass


def sleep(log: Log) -> None:
    started(log)
    time.sleep(FOREVER)


def wait_for_a_lock(log: Log) -> None:
    started(log)
    threading.Event().wait()


def wait_for_a_program(log: Log) -> None:
    started(log)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as program:
        try:
            program.wait()
        finally:
            program.kill()


def read_a_pipe(log: Log) -> None:
    started(log)
    reader, _writer = os.pipe()
    os.read(reader, 1)


HEARING = [spin, sleep, wait_for_a_lock, wait_for_a_program, read_a_pipe]


def go_on_all_the_same(log: Log) -> None:
    started(log)
    while True:
        try:
            time.sleep(FOREVER)
        except Exception:
            log.add("heard")


def ignore_sigterm(log: Log) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    go_on_all_the_same(log)


def sleep_in_c(log: Log) -> None:
    """In C, with the GIL, and deaf: what is interrupted sleeps again."""
    started(log)
    library = ctypes.PyDLL(None)
    while library.sleep(FOREVER):
        pass


def stay_in_c(log: Log) -> None:
    """In C for good: it waits for itself."""
    started(log)
    mutex = ctypes.create_string_buffer(64)
    library = ctypes.PyDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def clean_up(log: Log) -> None:
    started(log)
    try:
        time.sleep(FOREVER)
    except (phalanx.TaskTimeout, phalanx.TaskCancelled) as error:
        log.add(type(error).__name__)
        raise
    finally:
        log.add("cleaned up")


def return_when_told(log: Log) -> str:
    started(log)
    with contextlib.suppress(phalanx.TaskTimeout):
        time.sleep(FOREVER)
    return "late"


def sleep_if(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def die_at_first(log: Log, times: int) -> int:
    """Die so many times; then say how often this was called."""
    log.add(os.getpid())
    if len(log.lines()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(log.lines())


def fail_with_note(log: Log) -> None:
    log.add("run")
    raise ValueError("my own fault")


def begun(log: Log) -> int:
    wait_until(log.lines, "the task to begin")
    return int(log.lines()[0])


# -- timeouts


@pytest.mark.parametrize("task", HEARING)
def test_a_task_whose_time_is_over_is_told_so_and_its_worker_goes_on(ctx, log, task):
    with ctx.Pool(1, grace=30) as pool:
        worker = pool.apply(pid_of_worker)
        start = time.monotonic()
        with pytest.raises(phalanx.TaskTimeout, match=r"ran for more than 0\.2 s") as caught:
            pool.apply(task, (log,), timeout=LIMIT)
        assert LIMIT <= time.monotonic() - start < SOON
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert isinstance(error, multiprocessing.TimeoutError)
        assert (error.pid, error.exitcode, error.limit) == (worker, None, LIMIT)
        assert error.task == f"test_control.{task.__name__}"
        assert pool.apply(pid_of_worker) == worker


@pytest.mark.parametrize("task", [*HEARING, sleep_in_c, stay_in_c])
def test_the_error_has_the_stack_where_the_task_was_stuck(ctx, log, task):
    with ctx.Pool(1, grace=0.1) as pool:
        with pytest.raises(phalanx.TaskTimeout) as caught:
            pool.apply(task, (log,), timeout=LIMIT)
        first, *_ = [
            line for line in caught.value.stack.splitlines() if f"in {task.__name__}" in line
        ]
        assert __file__ in first
        assert "_worker.py" not in caught.value.stack
        assert any(task.__name__ in note for note in caught.value.__notes__)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.stack, again.pid) == (
            str(caught.value),
            caught.value.stack,
            caught.value.pid,
        )


@pytest.mark.parametrize(
    ("task", "how"),
    [
        (go_on_all_the_same, signal.SIGTERM),
        (stay_in_c, signal.SIGTERM),
        (ignore_sigterm, signal.SIGKILL),
    ],
)
def test_one_that_goes_on_all_the_same_is_ended_with_its_worker_alone(ctx, log, task, how):
    with ctx.Pool(2, grace=0.1) as pool:
        others = [
            pool.apply_async(sleep_if, (1.0,)),
            *(pool.apply_async(nothing) for _ in range(9)),
        ]
        with pytest.raises(phalanx.TaskTimeout, match=how.name) as caught:
            pool.apply(task, (log,), timeout=LIMIT)
        assert caught.value.exitcode == -how
        assert others[0].get() == 1.0
        assert all(other.get() is None for other in others[1:])
        assert pool.apply(pid_of_worker) != caught.value.pid


def test_clean_up_is_possible(pool, log):
    with pytest.raises(phalanx.TaskTimeout):
        pool.apply(clean_up, (log,), timeout=LIMIT)
    assert log.lines()[1:] == ["TaskTimeout", "cleaned up"]


def test_a_result_that_comes_after_the_time_is_a_timeout_all_the_same(pool, log):
    with pytest.raises(phalanx.TaskTimeout):
        pool.apply(return_when_told, (log,), timeout=LIMIT)


def test_the_time_counts_from_the_moment_the_task_begins(ctx):
    with ctx.Pool(1) as pool:
        results = [pool.apply_async(sleep_if, (0.15,), timeout=0.6) for _ in range(8)]
        assert [result.get() for result in results] == [0.15] * 8


def test_a_pool_has_a_timeout_for_all_and_a_call_its_own(ctx):
    with ctx.Pool(2, timeout=LIMIT) as pool:
        with pytest.raises(phalanx.TaskTimeout):
            pool.apply(sleep_if, (FOREVER,))
        assert pool.apply(sleep_if, (2 * LIMIT,), timeout=math.inf) == 2 * LIMIT
        assert pool.apply(sleep_if, (2 * LIMIT,), timeout=60) == 2 * LIMIT


def test_a_timeout_in_a_map_costs_one_item(ctx):
    items = [0, 0, FOREVER, 0, 0]
    with ctx.Pool(2, grace=30) as pool:
        with pytest.raises(phalanx.TaskTimeout):
            pool.map(sleep_if, items, timeout=LIMIT)
        for imap in (pool.imap, pool.imap_unordered):
            results, errors = [], 0
            iterator = imap(sleep_if, items, timeout=LIMIT)
            while True:
                try:
                    results.append(next(iterator))
                except phalanx.TaskTimeout:
                    errors += 1
                except StopIteration:
                    break
            assert (results, errors) == ([0] * 4, 1)
        # Several to a piece: it has as much time as all of its items.
        assert pool.map(sleep_if, [0.1] * 8, 4, timeout=0.4) == [0.1] * 8
        assert pool.starmap_async(sleep_if, [(0.1,)] * 8, 4, timeout=0.4).get() == [0.1] * 8


def test_one_that_does_not_begin_in_time_never_does(ctx, log):
    with ctx.Pool(1) as pool:
        running = pool.apply_async(sleep_if, (3 * LIMIT,))
        waiting = pool.apply_async(started, (log,), start_timeout=LIMIT)
        patient = pool.apply_async(identity, (1,), start_timeout=60)
        with pytest.raises(phalanx.TaskTimeout, match=r"did not begin within 0\.2 s") as caught:
            waiting.get()
        assert not running.ready()
        assert (caught.value.pid, caught.value.stack) == (None, "")
        assert (running.get(), patient.get()) == (3 * LIMIT, 1)
        assert log.lines() == []


def test_many_tasks_in_time_are_none_the_worse(pool):
    results = [pool.apply_async(identity, (n,), timeout=30, start_timeout=30) for n in range(3000)]
    assert [result.get() for result in results] == list(range(3000))


def test_terms_that_make_no_sense_are_refused(ctx, pool):
    for terms in [{"timeout": 0}, {"timeout": -1}, {"start_timeout": math.nan}, {"backoff": -1}]:
        with pytest.raises(ValueError, match=next(iter(terms))):
            pool.apply_async(nothing, **terms)
        with pytest.raises(ValueError, match=next(iter(terms))):
            ctx.Pool(1, **terms)
    for terms in [{"retries": -1}, {"retries": -7}]:
        with pytest.raises(ValueError, match="retries"):
            pool.map(nothing, [], **terms)
    with pytest.raises(ValueError, match="grace"):
        ctx.Pool(1, grace=-1)
    with pytest.raises(TypeError):
        pool.apply_async(nothing, timeout="soon")
    with pytest.raises(TypeError):
        pool.apply_async(nothing, patience=3)
    assert pool.apply(identity, (1,), timeout=None) == 1


# -- cancellation


def test_what_waits_vanishes_and_what_runs_ends(ctx, log, tmp_path):
    other = Log(tmp_path / "other")
    with ctx.Pool(1, grace=30) as pool:
        running = pool.apply_async(clean_up, (log,))
        waiting = pool.apply_async(started, (other,))
        last = pool.apply_async(identity, (3,))
        worker = begun(log)
        assert waiting.cancel()
        with pytest.raises(phalanx.TaskCancelled, match="before it began") as caught:
            waiting.get(SOON)
        assert isinstance(caught.value, CancelledError)
        assert running.cancel()
        with pytest.raises(phalanx.TaskCancelled, match=f"in worker {worker}"):
            running.get(SOON)
        assert last.get() == 3
        assert log.lines()[1:] == ["TaskCancelled", "cleaned up"]
        assert other.lines() == []
        assert pool.apply(pid_of_worker) == worker


def test_cancelling_what_has_ended_changes_nothing(pool):
    result = pool.apply_async(identity, (5,))
    assert result.get() == 5
    assert not result.cancel()
    assert result.get() == 5


def test_a_result_that_came_first_stays(pool):
    for _ in range(300):
        result = pool.apply_async(identity, (5,))
        result.cancel()
        with contextlib.suppress(phalanx.TaskCancelled):
            assert result.get(SOON) == 5
    assert pool.map(identity, range(100)) == list(range(100))


def test_a_cancelled_map_ends(ctx):
    with ctx.Pool(2) as pool:
        result = pool.map_async(sleep_if, [FOREVER] * 50, 1)
        kept = pool.apply_async(identity, (1,))
        assert result.cancel()
        with pytest.raises(phalanx.TaskCancelled):
            result.get(SOON)
        assert kept.get(SOON) == 1


def test_a_map_that_is_cancelled_at_once_takes_nothing_else_along(ctx):
    with ctx.Pool(2) as pool:
        for _ in range(30):
            result = pool.map_async(sleep_if, [FOREVER] * 50, 1)
            kept = pool.map_async(identity, range(5), 1)
            result.cancel()
            with pytest.raises(phalanx.TaskCancelled):
                result.get(SOON)
            assert kept.get(SOON) == list(range(5))


def test_a_cancelled_imap_reads_no_more_and_ends(ctx):
    with ctx.Pool(2) as pool:
        read = []
        results = pool.imap(sleep_if, (read.append(n) or FOREVER for n in range(10**6)))
        wait_until(lambda: any(worker.running for worker in pool.stats()), "a task to run")
        assert results.cancel()
        with pytest.raises(phalanx.TaskCancelled):
            results.next(SOON)
        assert pool.apply(identity, (1,)) == 1
        assert len(read) < 1000


def test_cancel_all_leaves_a_pool_that_works(ctx, log):
    with ctx.Pool(2) as pool:
        results = [pool.apply_async(sleep, (log,)) for _ in range(20)]
        wait_until(lambda: len(log.lines()) == 2, "two tasks to run")
        assert pool.cancel_all() == 20
        for result in results:
            with pytest.raises(phalanx.TaskCancelled):
                result.get(SOON)
        assert pool.cancel_all() == 0
        assert pool.map(identity, range(10)) == list(range(10))
        assert len(log.lines()) == 2


def test_the_error_callback_is_told(pool, log):
    told: list[BaseException] = []
    result = pool.apply_async(sleep, (log,), error_callback=told.append)
    begun(log)
    result.cancel()
    result.wait(SOON)
    assert [type(error) for error in told] == [phalanx.TaskCancelled]


def test_a_pool_closes_after_its_last_task_was_cancelled(ctx, log):
    pool = ctx.Pool(1)
    result = pool.apply_async(sleep, (log,))
    begun(log)
    pool.close()
    result.cancel()
    pool.join()


# -- retries


def test_a_task_is_begun_once_unless_it_may_be_run_again(pool, log):
    with pytest.raises(phalanx.WorkerDied):
        pool.apply(die_at_first, (log, 1))
    assert len(log.lines()) == 1


def test_a_task_whose_worker_died_is_run_again_as_often_as_is_allowed(pool, log, tmp_path):
    assert pool.apply(die_at_first, (log, 2), retries=2) == 3
    poison = Log(tmp_path / "poison")
    with pytest.raises(phalanx.WorkerDied, match="had run it before") as caught:
        pool.apply(die_at_first, (poison, 100), retries=2)
    pids = [int(line) for line in poison.lines()]
    assert [*(pid for pid, _ in caught.value.earlier), caught.value.pid] == pids
    assert [exitcode for _, exitcode in caught.value.earlier] == [-signal.SIGKILL] * 2
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.earlier) == (str(caught.value), caught.value.earlier)


def test_what_a_task_raises_is_no_reason_to_run_it_again(pool, log):
    with pytest.raises(ValueError, match="my own fault"):
        pool.apply(fail_with_note, (log,), retries=5)
    assert log.lines() == ["run"]


def test_large_arguments_are_there_again(pool, log):
    data = bytearray(b"x" * (1 << 20))
    assert pool.apply(die_and_measure, (log, data), retries=1) == len(data)


def die_and_measure(log: Log, data: bytearray) -> int:
    die_at_first(log, 1)
    return data.count(b"x")


def test_a_pool_that_closes_waits_for_the_next_try(ctx, log):
    with ctx.Pool(1, retries=1, backoff=0.3) as pool:
        result = pool.apply_async(die_at_first, (log, 1))
        pool.close()
        pool.join()
        assert result.get() == 2


def test_the_next_try_can_be_cancelled(ctx, log):
    with ctx.Pool(1) as pool:
        result = pool.apply_async(die_at_first, (log, 9), retries=9, backoff=60)
        begun(log)
        wait_until(lambda: pool.stats()[0].pid not in (None, begun(log)), "the next worker")
        assert result.cancel()
        with pytest.raises(phalanx.TaskCancelled):
            result.get(SOON)
        assert len(log.lines()) == 1


# -- what workers are doing


def test_stacks_are_told_without_a_stop(ctx, log):
    with ctx.Pool(3) as pool:
        spinning, sleeping = pool.apply_async(spin, (log,)), pool.apply_async(sleep, (log,))
        wait_until(lambda: len(log.lines()) == 2, "both tasks")
        pids = sorted(worker.pid for worker in pool._pool)
        for _ in range(3):
            stacks = pool.dump_stacks()
            assert sorted(stacks) == pids
            for place in ("in spin", "in sleep"):
                assert sum(place in text for text in stacks.values()) == 1
        assert not spinning.ready()
        assert not sleeping.ready()


def test_a_stopped_worker_delays_stacks_no_longer_than_is_said(ctx):
    with ctx.Pool(1) as pool:
        worker = pool.apply(pid_of_worker)
        os.kill(worker, signal.SIGSTOP)
        start = time.monotonic()
        assert pool.dump_stacks(0.2) == {worker: ""}
        assert time.monotonic() - start < SOON
        os.kill(worker, signal.SIGCONT)
        assert pool.apply(pid_of_worker) == worker


def test_workers_say_what_they_have_done(ctx, log):
    with ctx.Pool(1) as pool:
        assert pool.map(identity, range(10), 1) == list(range(10))
        with pytest.raises(ValueError, match="fault"):
            pool.apply(fail_with_note, (log,))
        pool.apply(sleep_if, (0.2,))
        (stats,) = pool.stats()
        assert 0 < stats.startup < 20
        assert (stats.returned, stats.failed, stats.started) == (11, 1, 1)
        assert (stats.running, stats.waiting) == (None, 0)
        assert stats.pid == pool._pool[0].pid
        assert 0.2 <= stats.busy < SOON
        assert stats.memory > 1 << 20
        results = [pool.apply_async(sleep_if, (FOREVER,)), pool.apply_async(nothing)]
        wait_until(lambda: (pool.stats()[0].running or 0) > 0.1, "the task to run")
        assert pool.stats()[0].waiting == 1
        os.kill(stats.pid, signal.SIGKILL)
        with pytest.raises(phalanx.WorkerDied):
            results[0].get()
        assert results[1].get() is None
        assert pool.stats()[0].started == 2
        assert pool.stats()[0].pid != stats.pid


def test_the_signal_is_nobodys_but_ours(pool, log):
    """A stray one ends nothing."""
    result = pool.apply_async(sleep_if, (0.5,))
    for worker in pool._pool:
        for _ in range(500):
            os.kill(worker.pid, signal.SIGURG)
    assert result.get() == 0.5
    assert Path(f"/proc/{pool.apply(pid_of_worker)}").exists()
