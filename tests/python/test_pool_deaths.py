"""A worker that dies costs the task that it was running, and nothing else."""

import faulthandler
import functools
import os
import pickle
import signal
import time
from collections.abc import Iterator

import phalanx
import pytest
from tasks import (
    die,
    die_at,
    is_running,
    note_and_die,
    note_and_wait,
    pid_of_worker,
    square,
    wait_until,
)

TOLD_WITHIN = 1.0  # seconds; the promise is 0.1, on a machine that has nothing else to do

DEATHS = [
    ("SIGKILL", -9, "SIGKILL"),
    ("SIGTERM", -15, "SIGTERM"),
    ("segfault", -11, "SIGSEGV"),
    ("SIGABRT", -6, "SIGABRT"),
    ("os._exit", 3, None),
]


@pytest.mark.parametrize(("how", "exitcode", "signal_name"), DEATHS)
def test_a_death_says_who_died_of_what_doing_what(pool, how, exitcode, signal_name):
    pids = {process.pid for process in pool._pool}
    with pytest.raises(phalanx.WorkerDied) as caught:
        pool.apply(die, (how,))
    died = caught.value
    assert died.pid in pids
    assert died.exitcode == exitcode
    assert died.signal == (-exitcode if exitcode < 0 else None)
    assert died.signal_name == signal_name
    assert died.task.endswith("die")
    for part in (str(died.pid), signal_name or "3", "die"):
        assert part in str(died)


@pytest.fixture
def _no_faulthandler() -> Iterator[None]:
    """Pytest enables it, and forked workers would have it from here."""
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    yield
    if enabled:
        faulthandler.enable()


@pytest.mark.usefixtures("_no_faulthandler")
@pytest.mark.parametrize("how", ["segfault", "SIGABRT"])
def test_a_crash_says_where(ctx, how):
    with ctx.Pool(1) as pool:
        for _ in range(2):
            with pytest.raises(phalanx.WorkerDied) as caught:
                pool.apply(die, (how,))
            died = caught.value
            assert "in die\n" in died.stack
            assert "_worker.py" not in died.stack
            assert died.__notes__ == [f"it was here when it died:\n{died.stack}"]
            assert pickle.loads(pickle.dumps(died)).stack == died.stack
        with pytest.raises(phalanx.WorkerDied) as caught:
            pool.apply(die, ("SIGKILL",))
        assert caught.value.stack == ""


def test_a_sigkill_hints_at_the_out_of_memory_killer(pool):
    with pytest.raises(phalanx.WorkerDied, match="memory"):
        pool.apply(die, ("SIGKILL",))


def test_a_death_is_told_at_once(pool, log, record_property):
    with pytest.raises(phalanx.WorkerDied):
        pool.apply(note_and_die, (log, "SIGKILL"))
    told_after = time.monotonic() - float(log.lines()[0])
    record_property("told_after_ms", round(told_after * 1e3, 2))
    assert told_after < TOLD_WITHIN


def test_a_death_can_be_pickled(pool):
    with pytest.raises(phalanx.WorkerDied) as caught:
        pool.apply(die, ("SIGKILL",))
    again = pickle.loads(pickle.dumps(caught.value))
    for name in ("pid", "exitcode", "signal", "signal_name", "task"):
        assert getattr(again, name) == getattr(caught.value, name)
    assert str(again) == str(caught.value)


def outcomes(results):
    """The values of those that have one; and how many were lost to a death."""
    values, lost = [], 0
    for result in results:
        try:
            values.append(result.get())
        except phalanx.WorkerDied:
            lost += 1
    return values, lost


@pytest.mark.parametrize("victim", [0, 57, 199])
def test_waiting_tasks_run_elsewhere_exactly_once(pool, log, victim):
    results = [pool.apply_async(die_at, (victim, log, x)) for x in range(200)]
    values, lost = outcomes(results)
    assert lost == 1
    assert values == [x for x in range(200) if x != victim]
    assert sorted(map(int, log.lines())) == list(range(200))


def drain(iterator):
    """The values that an iterator gives; and how often it told of a death instead."""
    values, lost = [], 0
    while True:
        try:
            values.append(next(iterator))
        except StopIteration:
            return values, lost
        except phalanx.WorkerDied:
            lost += 1


@pytest.mark.parametrize("chunksize", [1, 10])
@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_imap_loses_the_one_task_and_gives_the_others(pool, log, name, chunksize):
    """Whoever asks for chunks makes a chunk the task."""
    victim = 42
    doomed = range(victim - victim % chunksize, victim - victim % chunksize + chunksize)
    others = [x for x in range(100) if x not in doomed]
    iterator = getattr(pool, name)(functools.partial(die_at, victim, log), range(100), chunksize)
    values, lost = drain(iterator)
    assert lost == 1
    assert sorted(values) == others
    ran = sorted(map(int, log.lines()))
    assert ran == sorted([*others, *range(doomed.start, victim + 1)])


@pytest.mark.parametrize("chunksize", [None, 1, 10])
def test_map_raises_the_death_and_runs_nothing_twice(pool, log, chunksize):
    with pytest.raises(phalanx.WorkerDied):
        pool.map(functools.partial(die_at, 42, log), range(100), chunksize)
    pool.close()
    pool.join()
    ran = list(map(int, log.lines()))
    assert len(ran) == len(set(ran))


def test_other_calls_do_not_notice(pool, log):
    held = pool.apply_async(note_and_wait, (log, "started", "go"))
    wait_until(lambda: "started" in log.lines(), "the other call")
    with pytest.raises(phalanx.WorkerDied):
        pool.apply(die, ("SIGKILL",))
    assert not held.ready()
    log.add("go")
    assert held.get() == "started"


def test_a_replacement_starts(pool):
    with pytest.raises(phalanx.WorkerDied) as caught:
        pool.apply(die, ("SIGKILL",))

    def replaced():
        pids = {process.pid for process in pool._pool if process.is_alive()}
        return len(pids) == 2 and caught.value.pid not in pids

    wait_until(replaced, "a replacement")
    assert pool.map(square, range(10), 1) == [x * x for x in range(10)]


def test_an_idle_workers_death_costs_nothing(pool):
    pool.apply(pid_of_worker)
    victim = pool._pool[0].pid
    os.kill(victim, signal.SIGKILL)
    results = [pool.apply_async(square, (x,)) for x in range(1000)]
    assert [result.get() for result in results] == [x * x for x in range(1000)]
    wait_until(lambda: not is_running(victim), "the death")
    assert pool.map(square, range(100), 1) == [x * x for x in range(100)]


def test_the_death_of_all_idle_workers_costs_nothing(pool):
    pool.apply(pid_of_worker)
    for process in list(pool._pool):
        os.kill(process.pid, signal.SIGKILL)
    assert pool.map(square, range(100), 1) == [x * x for x in range(100)]


def test_a_pool_outlives_many_deaths(pool):
    results = [pool.apply_async(die if x % 2 else square, (how(x),)) for x in range(20)]
    values, lost = outcomes(results)
    assert lost == 10
    assert values == [x * x for x in range(0, 20, 2)]
    assert pool.map(square, range(10)) == [x * x for x in range(10)]


def how(x):
    return "SIGKILL" if x % 2 else x


def test_error_callbacks_hear_of_a_death(pool):
    errors = []
    pool.apply_async(die, ("SIGKILL",), error_callback=errors.append).wait()
    wait_until(lambda: errors, "the error callback")
    assert isinstance(errors[0], phalanx.WorkerDied)


def test_a_worker_that_is_stopped_and_killed_loses_its_task_only(pool, log):
    result = pool.apply_async(note_pid_and_wait, (log,))
    wait_until(log.lines, "the task to start")
    pid = int(log.lines()[0])
    os.kill(pid, signal.SIGSTOP)
    assert pool.apply(square, (7,)) == 49
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(phalanx.WorkerDied) as caught:
        result.get()
    assert caught.value.pid == pid


def note_pid_and_wait(log):
    note_and_wait(log, os.getpid(), "never")


def test_many_deaths_on_the_way_of_an_iterator_lose_their_own_tasks_only(pool, log):
    iterator = pool.imap_unordered(functools.partial(die_on_sevens, log), range(50))
    values, lost = drain(iterator)
    assert lost == len(range(0, 50, 7))
    assert sorted(values) == [x for x in range(50) if x % 7]
    assert sorted(map(int, log.lines())) == list(range(50))


def die_on_sevens(log, x):
    return die_at(x if x % 7 == 0 else -1, log, x)
