"""Locks and what else processes wait for do what the standard library's do, and more."""

import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import warnings
from multiprocessing import synchronize as theirs

import phalanx
import pytest
from phalanx import synchronize


def add(lock, value, times):
    for _ in range(times):
        with lock:
            value.value += 1


def test_processes_that_contend_lose_no_addition(ctx):
    for lock in (ctx.Lock(), ctx.RLock(), ctx.Semaphore(1), ctx.BoundedSemaphore(1)):
        value = ctx.RawValue("q", 0)
        children = [ctx.Process(target=add, args=(lock, value, 2000)) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert value.value == 6000, lock


def acquire_in_other_context(lock, event):
    with lock:
        event.set()


@pytest.mark.parametrize("their_method", ["fork", "spawn"])
def test_locks_work_in_processes_of_the_standard_library(their_method):
    lock, event = phalanx.Lock(), phalanx.Event()
    theirs = multiprocessing.get_context(their_method)
    child = theirs.Process(target=acquire_in_other_context, args=(lock, event))
    child.start()
    assert event.wait(30)
    child.join()
    assert child.exitcode == 0
    assert not lock.locked()


def test_a_lock_is_locked_until_it_is_released():
    for lock in (phalanx.Lock(), phalanx.RLock()):
        assert not lock.locked()
        assert lock.acquire()
        assert lock.locked()
        lock.release()
        assert not lock.locked()
    semaphore = phalanx.Semaphore(1)
    assert semaphore.acquire(False)
    assert semaphore.locked()


def test_block_and_timeout_are_the_standard_librarys():
    lock = phalanx.Lock()
    assert lock.acquire(block=True, timeout=-1)
    assert not lock.acquire(0)
    assert not lock.acquire(False, 10)
    assert not lock.acquire(True, 0)
    assert not lock.acquire(timeout=-5)
    start = time.monotonic()
    assert not lock.acquire(True, 0.05)
    assert 0.05 <= time.monotonic() - start < 5
    with pytest.raises(TypeError):
        lock.acquire(timeout="soon")


def test_who_has_a_lock_is_in_its_repr():
    for lock, mine, other in (
        (phalanx.Lock(), "MainProcess", "SomeOtherThread"),
        (phalanx.RLock(), "MainProcess, 1", "SomeOtherThread, nonzero"),
    ):
        with lock:
            assert mine in repr(lock)
            seen = []
            thread = threading.Thread(target=lambda lock=lock, seen=seen: seen.append(repr(lock)))
            thread.start()
            thread.join()
            assert other in seen[0]
        assert "None" in repr(lock)
    assert repr(phalanx.Semaphore(3)) == "<Semaphore(value=3)>"
    assert repr(phalanx.BoundedSemaphore(3)) == "<BoundedSemaphore(value=3, maxvalue=3)>"
    assert "unset" in repr(phalanx.Event())


def test_twenty_thousand_locks_take_no_descriptor_each():
    before = len(os.listdir("/proc/self/fd"))
    locks = [phalanx.Lock() for _ in range(20_000)]
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    assert all(lock.acquire(False) for lock in locks)


def test_locks_that_come_and_go_take_no_memory():
    def size():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    for _ in range(1000):
        phalanx.Lock()
    before = size()
    for _ in range(100_000):
        phalanx.Lock()
    assert size() - before < 4 << 20


def take_two(first, second):
    assert first.acquire(False)
    assert not second.acquire(False)


def test_two_locks_of_one_arena_go_to_a_child_together(ctx):
    first, second = ctx.Lock(), ctx.Lock()
    second.acquire()
    child = ctx.Process(target=take_two, args=(first, second))
    child.start()
    child.join()
    assert child.exitcode == 0
    second.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", phalanx.AbandonedLock)
        assert first.acquire()  # it ended with it


def wait_and_tell(condition, ready, woken):
    with condition:
        ready.release()
        if condition.wait(30):
            woken.release()


def test_notify_wakes_as_many_as_it_says(ctx):
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    children = [ctx.Process(target=wait_and_tell, args=(condition, ready, woken)) for _ in range(4)]
    for child in children:
        child.start()
    for _ in children:
        ready.acquire()
    for n, total in ((1, 1), (2, 3)):
        with condition:
            condition.notify(n)
        for _ in range(n):
            assert woken.acquire(timeout=30)
        assert not woken.acquire(timeout=0.1), total
    with condition:
        condition.notify_all()
    assert woken.acquire(timeout=30)
    for child in children:
        child.join()


def test_a_condition_of_the_standard_library_takes_our_lock():
    condition = multiprocessing.get_context("fork").Condition(phalanx.Lock())
    with condition:
        assert not condition.wait(0.01)
        condition.notify()


def test_an_event_that_is_set_and_cleared_at_once_is_seen():
    event = phalanx.Event()
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(event.wait(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(seen) < 4 and time.monotonic() < deadline:
        event.set()
        event.clear()
        time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert seen == [True] * 4
    assert not event.wait(0)


def meet(barrier, rounds, places):
    for _ in range(rounds):
        places.put(barrier.wait(30))


def test_a_barrier_lets_all_go_together_again_and_again(ctx):
    barrier, places = ctx.Barrier(3), ctx.SimpleQueue()
    children = [ctx.Process(target=meet, args=(barrier, 20, places)) for _ in range(3)]
    for child in children:
        child.start()
    got = [places.get() for _ in range(60)]
    for child in children:
        child.join()
    places.close()
    assert all(sorted(got).count(place) == 20 for place in range(3))


def test_a_condition_has_its_turn_interrupted_by_a_signal():
    condition = phalanx.Condition()

    def handler(_signum, _frame):
        raise InterruptedError

    previous = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    waits = (
        lambda: condition.wait(30),
        lambda: phalanx.Event().wait(30),
        lambda: phalanx.Semaphore(0).acquire(),
    )
    try:
        for wait in waits:
            timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
            with condition:
                timer.start()
                start = time.monotonic()
                with pytest.raises(InterruptedError):
                    wait()
                assert time.monotonic() - start < 5
                assert condition._sleeping_count.get_value() == 0
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_forked_child_does_not_hold_what_its_parent_holds():
    lock = phalanx.RLock()
    with lock:
        pid = os.fork()
        if not pid:
            mine = lock._is_mine() or lock.acquire(False)
            os._exit(int(mine))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert lock._is_mine()


# Wrong use


def test_a_release_too_many_is_a_value_error():
    for lock in (phalanx.Lock(), phalanx.BoundedSemaphore(2)):
        with pytest.raises(ValueError, match="released too many times"):
            lock.release()


def test_an_rlock_is_released_by_its_thread_alone():
    lock = phalanx.RLock()
    with pytest.raises(AssertionError, match="not owned"):
        lock.release()
    with lock:
        errors = []

        def other():
            try:
                lock.release()
            except AssertionError as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert errors
        assert lock.locked()


@pytest.mark.parametrize("units", [-1, 2**31, 2**80])
def test_units_that_cannot_be_are_a_value_error(units):
    for kind in (phalanx.Semaphore, phalanx.BoundedSemaphore):
        with pytest.raises(ValueError, match=str(units)):
            kind(units)


def test_a_condition_is_used_by_who_holds_its_lock():
    condition = phalanx.Condition()
    for use in (condition.wait, condition.notify, condition.notify_all):
        with pytest.raises(AssertionError):
            use()


def test_a_lock_is_pickled_to_a_starting_process_only():
    for thing in (phalanx.Lock(), phalanx.Condition(), phalanx.Event(), phalanx.Semaphore()):
        with pytest.raises(RuntimeError, match="through inheritance"):
            pickle.dumps(thing)


def test_a_policy_that_is_none_is_a_value_error():
    for make in (phalanx.Lock, phalanx.RLock, phalanx.Semaphore, phalanx.BoundedSemaphore):
        with pytest.raises(ValueError, match="'explode'"):
            make(on_abandoned="explode")


def test_a_barrier_without_parties_is_a_value_error():
    with pytest.raises(ValueError, match="parties"):
        phalanx.Barrier(0)


def test_all_names_of_the_standard_librarys_module_are_here():
    assert set(theirs.__all__) <= set(synchronize.__all__)
    assert synchronize.SEM_VALUE_MAX == theirs.SEM_VALUE_MAX
    assert issubclass(synchronize.Lock, synchronize.SemLock)
