"""Queues when somebody is killed: SIGKILL at any instruction, and every item is accounted for."""

import os
import random
import signal
import threading
import time
from typing import Any

import phalanx
import pytest

KINDS = ["Queue", "SimpleQueue"]


def put_for_ever(q: Any, name: int, size: int) -> None:
    """Put ``(name, number, body)``, of which the body says the number again."""
    number = 0
    while True:
        q.put((name, number, number.to_bytes(4, "big") * size))
        number += 1


def get_for_ever(q: Any, results: Any) -> None:
    """Take numbers and pass them on."""
    while True:
        results.put(q.get())


def get_one(q: Any, results: Any) -> None:
    """Take one, say so, and never say that it is done."""
    results.put(q.get())
    signal.pause()


def hello(q: Any) -> None:
    """Put a greeting."""
    q.put("hello")


def kill(process: Any) -> None:
    """End it as the kernel would."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10, 60_000])
def test_a_killed_writer_leaves_whole_items_and_a_working_queue(kind: str, size: int) -> None:
    ctx = phalanx.get_context("fork")
    q = getattr(ctx, kind)()
    rng = random.Random(1)
    for name in range(12):
        process = ctx.Process(target=put_for_ever, args=(q, name, size))
        process.start()
        expected, until = 0, time.monotonic() + rng.uniform(0.005, 0.05)
        while time.monotonic() < until or expected == 0:
            who, number, body = q.get()
            assert (who, number, body) == (name, expected, expected.to_bytes(4, "big") * size)
            expected += 1
        kill(process)
        q.put((None, -1, b""))
        while (item := q.get())[0] is not None:
            assert item[:2] == (name, expected)
            expected += 1
        assert q.empty()


def test_a_killed_reader_loses_at_most_its_own_item() -> None:
    ctx = phalanx.get_context("fork")
    q, results = ctx.Queue(20), ctx.Queue()
    total, kills, rng = 6000, 12, random.Random(2)

    def feed() -> None:
        for number in range(total):
            q.put(number)

    feeder = threading.Thread(target=feed)
    feeder.start()
    for _ in range(kills):
        process = ctx.Process(target=get_for_ever, args=(q, results))
        process.start()
        time.sleep(rng.uniform(0.002, 0.02))
        kill(process)
    last = ctx.Process(target=get_for_ever, args=(q, results))
    last.start()
    feeder.join()
    taken = [results.get(timeout=30)]
    while taken[-1] != total - 1:
        taken.append(results.get(timeout=30))
    kill(last)
    assert taken == sorted(set(taken)), "twice, or out of order"
    # One in hand, each; that it is put again is one more step at which it can be lost.
    assert total - len(taken) <= kills


@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_killed_in_its_wait_takes_nothing_with_it(ctx: Any, kind: str) -> None:
    q, results = getattr(ctx, kind)(), ctx.Queue()
    process = ctx.Process(target=get_for_ever, args=(q, results))
    process.start()
    q.put("first")
    assert results.get() == "first"
    kill(process)
    q.put("hello")
    assert q.get() == "hello"


def test_the_end_of_its_maker_leaves_the_queue_to_those_who_have_it(ctx: Any) -> None:
    q = ctx.Queue()
    process = ctx.Process(target=hello, args=(q,))
    process.start()
    process.join()
    assert q.get() == "hello"


def test_a_task_of_the_dead_is_done_by_whoever_says_so(ctx: Any) -> None:
    q, results = ctx.JoinableQueue(), ctx.Queue()
    q.put("task")
    process = ctx.Process(target=get_one, args=(q, results))
    process.start()
    assert results.get() == "task"
    kill(process)
    joiner = threading.Thread(target=q.join)
    joiner.start()
    joiner.join(0.1)
    assert joiner.is_alive()
    q.task_done()
    joiner.join(30)
    assert not joiner.is_alive()


def test_killed_sleepers_do_not_keep_others_from_being_woken() -> None:
    ctx = phalanx.get_context("fork")
    q, results = ctx.Queue(), ctx.Queue()
    sleepers = [ctx.Process(target=get_for_ever, args=(q, results)) for _ in range(4)]
    for process in sleepers:
        process.start()
    q.put(0)
    assert results.get() == 0
    for process in sleepers:
        kill(process)
    live = ctx.Process(target=get_for_ever, args=(q, results))
    live.start()
    for number in range(50):
        q.put(number)
        assert results.get(timeout=30) == number
    kill(live)
