"""What is left by a process that ends while it holds a lock, waits, or wakes others."""

import os
import random
import signal
import threading
import time
import warnings

import phalanx
import pytest

SOON = 5.0  # seconds; what is promised is 0.1, on a machine that has the time


def hold(lock, event):
    lock.acquire()
    event.set()
    signal.pause()


def exit_with(lock, event):
    lock.acquire()
    event.set()
    os._exit(3)


def abandon(ctx, lock, target=hold):
    """Have a process end while it holds ``lock``; its pid."""
    event = ctx.Event()
    child = ctx.Process(target=target, args=(lock, event))
    child.start()
    assert event.wait(30)
    child.kill()
    child.join()
    return child.pid


KINDS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_one_acquires_what_a_dead_process_held_and_is_told(ctx, kind):
    lock = getattr(ctx, kind)()
    pid = abandon(ctx, lock)
    start = time.monotonic()
    with pytest.warns(phalanx.AbandonedLock, match=f"process {pid} .*held a {kind}") as caught:
        assert lock.acquire()
    assert time.monotonic() - start < SOON
    assert caught[0].message.pid == pid
    assert caught[0].filename == __file__
    lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lock.acquire()  # it is told once
    lock.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_the_next_one_who_only_tries_acquires_it_too(ctx, kind):
    lock = getattr(ctx, kind)(on_abandoned="ignore")
    abandon(ctx, lock)
    deadline = time.monotonic() + SOON
    while not lock.acquire(block=False):
        assert time.monotonic() < deadline
    lock.release()


def test_how_the_holder_ended_is_told(ctx):
    lock = ctx.Lock()
    event = ctx.Event()
    child = ctx.Process(target=exit_with, args=(lock, event))
    child.start()
    assert event.wait(30)
    with pytest.warns(phalanx.AbandonedLock, match="exited with code 3") as caught:
        assert lock.acquire()
    assert caught[0].message.exitcode == 3
    child.join()


@pytest.mark.parametrize("kind", KINDS)
def test_raise_leaves_the_lock_free(ctx, kind):
    lock = getattr(ctx, kind)(on_abandoned="raise")
    pid = abandon(ctx, lock)
    with pytest.raises(phalanx.AbandonedLock) as caught:
        lock.acquire()
    assert caught.value.pid == pid
    assert not lock.locked()
    with lock:
        pass


def test_a_warning_that_is_made_an_error_leaves_the_lock_free(ctx):
    lock = ctx.Lock()
    abandon(ctx, lock)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(phalanx.AbandonedLock):
            lock.acquire()
    assert not lock.locked()


def test_a_waiter_that_waited_before_the_death_acquires_it(ctx):
    lock, event = ctx.Lock(on_abandoned="ignore"), ctx.Event()
    child = ctx.Process(target=hold, args=(lock, event))
    child.start()
    assert event.wait(30)
    acquired = []
    thread = threading.Thread(target=lambda: acquired.append(lock.acquire(timeout=30)))
    thread.start()
    child.kill()
    thread.join()
    child.join()
    assert acquired == [True]


def take_signal(semaphore, event):
    semaphore.acquire()
    event.set()
    signal.pause()


def test_a_signal_that_a_dead_process_took_is_not_given_back(ctx):
    semaphore = ctx.Semaphore(0)
    semaphore.release()
    abandon(ctx, semaphore, take_signal)
    assert not semaphore.acquire(timeout=0.2)


def wait_on(condition, ready, woken):
    with condition:
        ready.release()
        if condition.wait(30):
            woken.release()


def test_a_notification_for_a_dead_process_goes_to_one_who_lives(ctx):
    condition, ready, woken = ctx.Condition(), ctx.Semaphore(0), ctx.Semaphore(0)
    children = []
    for _ in range(2):
        child = ctx.Process(target=wait_on, args=(condition, ready, woken))
        child.start()
        assert ready.acquire(timeout=30)
        children.append(child)
    with condition:  # the first waits, or it could not be had
        children[0].kill()
        children[0].join()
        condition.notify()
    assert woken.acquire(timeout=SOON)
    children[1].join()


def meet(barrier):
    try:
        barrier.wait(30)
    except threading.BrokenBarrierError:
        os._exit(7)


def test_a_barrier_with_a_dead_party_breaks(ctx):
    barrier = ctx.Barrier(3)
    children = [ctx.Process(target=meet, args=(barrier,)) for _ in range(2)]
    for child in children:
        child.start()
    deadline = time.monotonic() + 30
    while barrier.n_waiting < 2:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children[0].kill()
    start = time.monotonic()
    children[1].join()
    assert time.monotonic() - start < SOON
    assert children[1].exitcode == 7
    assert barrier.broken
    children[0].join()
    barrier.reset()
    assert (barrier.broken, barrier.n_waiting) == (False, 0)


def test_a_creator_that_ends_leaves_a_lock_that_works(ctx):
    """The grandchild's lock was made by a process that has ended."""
    result = ctx.SimpleQueue()
    child = ctx.Process(target=make_and_leave, args=(result,))
    child.start()
    child.join()
    assert result.get() == "acquired"
    result.close()


def make_and_leave(result):
    lock, event = phalanx.Lock(), phalanx.Event()
    grandchild = phalanx.get_context("fork").Process(target=outlive, args=(lock, event, result))
    grandchild.start()
    event.wait(30)
    os._exit(0)


def outlive(lock, event, result):
    parent = os.getppid()
    event.set()
    while os.getppid() == parent:
        time.sleep(0.005)
    with lock:
        result.put("acquired")


def churn(lock, condition, event, value):
    while True:
        with lock:
            value.value += 1
        with condition:
            condition.notify()
            condition.wait(0.001)
        event.set()
        event.clear()


@pytest.mark.time_limit(90)
def test_processes_killed_at_any_instruction_leave_all_of_it_working(ctx):
    """SIGKILL at random moments of acquire, release, wait, notify and set."""
    lock = ctx.Lock(on_abandoned="ignore")
    condition = ctx.Condition(ctx.RLock(on_abandoned="ignore"))
    event, value = ctx.Event(), ctx.RawValue("q", 0)
    chance = random.Random(7)
    for _ in range(6):
        children = [
            ctx.Process(target=churn, args=(lock, condition, event, value)) for _ in range(3)
        ]
        before = value.value
        for child in children:
            child.start()
        deadline = time.monotonic() + 30
        while value.value < before + 10:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        for child in children:
            time.sleep(chance.random() * 0.01)
            child.kill()
        for child in children:
            child.join()
        assert lock.acquire(timeout=SOON)
        lock.release()
        with condition:
            condition.notify_all()
        event.set()
        assert event.wait(SOON)
        event.clear()
