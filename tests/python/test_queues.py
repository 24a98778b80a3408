"""Queues: what they promise, one test a promise, and one for each row of wrong arguments."""

import array
import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.queues
import os
import pickle
import queue
import signal
import threading
import time
from collections import Counter
from multiprocessing import connection
from typing import Any

import phalanx
import pytest
from phalanx import queues
from tasks import wait_until

KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]
VALUES: list[Any] = [
    *(None, True, 0, -1, 2**63 - 1, 2**63, -(2**100), 1.5, "", "text", "\ud800", "\U0001f40d"),
    *(b"", b"bytes", b"x" * 70_000, "y" * 70_000, (1, "abc", 2.5), [1, [2]], {"a": {1, 2}}),
    *(bytearray(b"z" * 200_000), array.array("d", [1.0] * 50_000), ValueError("no")),
]


def echo(inbox: Any, outbox: Any) -> None:
    """Send everything back, until ``...``."""
    while (item := inbox.get()) is not ...:
        outbox.put(item)


def put_numbers(target: Any, name: int, count: int) -> None:
    """Put ``(name, 0)``, ``(name, 1)``, ..."""
    for number in range(count):
        target.put((name, number))


def take_numbers(source: Any, results: Any) -> None:
    """Take until ``None``, and put what was taken as one list."""
    results.put(list(iter(source.get, None)))


def put_much(target: Any, size: int) -> None:
    """Put ``size`` bytes that nobody reads."""
    target.put(b"m" * size)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same type; exceptions by what they say."""
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_is_what_another_process_gets(ctx: Any, kind: str) -> None:
    there, back = getattr(ctx, kind)(), getattr(ctx, kind)()
    process = ctx.Process(target=echo, args=(there, back))
    process.start()
    for value in VALUES:
        there.put(value)
    assert all(same(back.get(), value) for value in VALUES)
    there.put(...)
    process.join()
    assert process.exitcode == 0


def test_what_is_put_stays_itself_when_it_is_changed_later(ctx: Any) -> None:
    q, item = ctx.Queue(), [1]
    q.put(item)
    item.append(2)
    assert q.get() == [1]


def test_items_of_each_producer_stay_in_order_and_none_is_lost_or_twice(ctx: Any) -> None:
    q, results = ctx.Queue(50), ctx.Queue()
    producers = [ctx.Process(target=put_numbers, args=(q, name, 400)) for name in range(3)]
    consumers = [ctx.Process(target=take_numbers, args=(q, results)) for _ in range(2)]
    for process in (*producers, *consumers):
        process.start()
    for process in producers:
        process.join()
    for _ in consumers:
        q.put(None)
    taken = [results.get() for _ in consumers]
    for process in consumers:
        process.join()
    for items in taken:
        for name in range(3):
            numbers = [number for producer, number in items if producer == name]
            assert numbers == sorted(numbers)
    everything = Counter(item for items in taken for item in items)
    assert everything == Counter((name, number) for name in range(3) for number in range(400))


def test_threads_share_a_queue() -> None:
    q, results = phalanx.Queue(10), queue.Queue[Any]()
    producers = [threading.Thread(target=put_numbers, args=(q, n, 500)) for n in range(3)]
    consumers = [threading.Thread(target=take_numbers, args=(q, results)) for _ in range(3)]
    for thread in (*producers, *consumers):
        thread.start()
    for thread in producers:
        thread.join()
    for _ in consumers:
        q.put(None)
    for thread in consumers:
        thread.join()
    everything = Counter(item for _ in consumers for item in results.get())
    assert everything == Counter((n, number) for n in range(3) for number in range(500))


def test_the_size_is_exact_at_the_instant_of_the_call() -> None:
    q = phalanx.Queue(3)
    assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
    for size in (1, 2, 3):
        q.put(size)
        assert (q.qsize(), q.empty(), q.full()) == (size, False, size == 3)
    for size in (2, 1, 0):
        q.get()
        assert (q.qsize(), q.empty(), q.full()) == (size, size == 0, False)


def test_the_bound_holds_and_full_is_told() -> None:
    q = phalanx.Queue(2)
    q.put(1)
    q.put_nowait(2)
    for attempt in (
        lambda: q.put_nowait(3),
        lambda: q.put(3, False),
        lambda: q.put(3, True, 0.01),
        lambda: q.put(3, timeout=-1),
    ):
        with pytest.raises(queue.Full):
            attempt()
    assert [q.get(), q.get()] == [1, 2]


def test_empty_is_told_and_not_too_early() -> None:
    q = phalanx.Queue()
    for attempt in (q.get_nowait, lambda: q.get(False), lambda: q.get(timeout=-1)):
        with pytest.raises(queue.Empty):
            attempt()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(True, 0.15)
    assert 0.15 <= time.monotonic() - start < 5


def test_one_who_waits_for_room_gets_it() -> None:
    q = phalanx.Queue(1)
    q.put(1)
    thread = threading.Thread(target=q.put, args=(2,))
    thread.start()
    assert [q.get(), q.get(timeout=30)] == [1, 2]
    thread.join()


def test_put_many_and_get_many_move_all_that_there_is_room_for() -> None:
    q = phalanx.Queue(5)
    assert q.put_many(iter(range(3))) == 3
    assert q.put_many(range(3, 10), block=False) == 2
    with pytest.raises(queue.Full):
        q.put_many([10], timeout=0.01)
    assert q.put_many([]) == 0
    assert q.get_many(2) == [0, 1]
    assert q.get_many(100) == [2, 3, 4]
    with pytest.raises(queue.Empty):
        q.get_many(1, timeout=0.01)
    with pytest.raises(queue.Empty):
        q.get_many(1, False)


def test_put_many_waits_for_room_for_all() -> None:
    q = phalanx.Queue(3)
    thread = threading.Thread(target=q.put_many, args=(range(20),))
    thread.start()
    taken: list[int] = []
    while len(taken) < 20:
        taken += q.get_many(2, timeout=30)
    thread.join()
    assert taken == list(range(20))


class Unwritable:
    """Cannot be pickled, for a reason of its own."""

    def __reduce__(self) -> Any:
        raise KeyError("secret")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_pickled_raises_in_put_and_is_not_there(kind: str) -> None:
    q = getattr(phalanx, kind)()
    with pytest.raises(KeyError, match="secret"):
        q.put(Unwritable())
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        q.put(threading.Lock())
    assert q.empty()
    q.put("next")
    assert q.get() == "next"


def test_a_subclass_can_have_the_errors_of_pickling() -> None:
    seen = []

    class Forgiving(phalanx.queues.Queue):  # type: ignore[misc]
        @staticmethod
        def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
            seen.append((type(e), type(obj)))

    q = Forgiving(ctx=phalanx.get_context())
    q.put(Unwritable())
    assert (seen, q.empty()) == ([(KeyError, Unwritable)], True)


def test_a_closed_queue_says_so() -> None:
    for kind in ("Queue", "JoinableQueue"):
        q = getattr(phalanx, kind)()
        with pytest.raises(AssertionError, match="not closed"):
            q.join_thread()
        q.put(1)
        q.close()
        q.close()
        q.join_thread()
        q.cancel_join_thread()
        for attempt in (
            lambda q=q: q.put(1),
            lambda q=q: q.put_many([1]),
            q.get,
            lambda q=q: q.get_many(1),
            q.get_nowait,
        ):
            with pytest.raises(ValueError, match="is closed"):
                attempt()
        with pytest.raises(OSError, match="is closed"):
            q.empty()
    simple = phalanx.SimpleQueue()
    simple.close()
    for attempt in (lambda: simple.put(1), simple.get, simple.empty):
        with pytest.raises(OSError, match="is closed"):
            attempt()


def test_wrong_timeouts_and_counts_are_told() -> None:
    q = phalanx.Queue()
    with pytest.raises(TypeError):
        q.get(True, "soon")
    with pytest.raises(ValueError, match="not a number"):
        q.get(True, float("nan"))
    with pytest.raises(ValueError, match="at least 1"):
        q.get_many(0)
    with pytest.raises(OverflowError):
        q.get_many(-1)
    with pytest.raises(TypeError):
        phalanx.queues.Queue()


def test_a_queue_is_pickled_for_children_only() -> None:
    for kind in KINDS:
        with pytest.raises(RuntimeError, match="should only be shared between processes through"):
            pickle.dumps(getattr(phalanx, kind)())


def test_tasks_are_counted_until_all_are_done(ctx: Any) -> None:
    q = ctx.JoinableQueue()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.join()
    q.put_many("abc")
    thread = threading.Thread(target=q.join)
    thread.start()
    for _ in range(3):
        assert thread.is_alive()
        q.get()
        q.task_done()
    thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


# https://github.com/python/cpython/issues/85880
def test_a_process_ends_though_nobody_reads_what_it_has_put(ctx: Any) -> None:
    q = ctx.Queue()
    process = ctx.Process(target=put_much, args=(q, 20 << 20))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert q.get() == b"m" * (20 << 20)


def memory_of(q: Any) -> int:
    """Bytes that the queue's memory takes, by the system's count of its pages."""
    return os.fstat(q._descriptors()[0]).st_blocks * 512


def test_the_memory_of_a_backlog_is_returned() -> None:
    q = phalanx.Queue()
    for _ in range(64):
        q.put(b"m" * (1 << 20))
    assert memory_of(q) >= 64 << 20
    while not q.empty():
        q.get()
    assert memory_of(q) < 24 << 20
    q.put("still there")
    assert q.get() == "still there"


def test_a_queue_that_is_used_for_long_stays_small() -> None:
    q = phalanx.Queue()
    for number in range(2000):
        q.put(number.to_bytes(2, "big") * 5000)
        assert q.get()[:2] == number.to_bytes(2, "big")
    assert memory_of(q) < 1 << 20


def put_and_get_large(q: Any) -> int:
    """A large item comes and goes; how much memory the queue takes then."""
    item = b"m" * (32 << 20)
    q.put(item)
    assert q.get() == item
    return memory_of(q)


def test_the_memory_of_a_large_item_is_used_for_the_next_and_not_more() -> None:
    q = phalanx.Queue()
    most = max(put_and_get_large(q) for _ in range(6))
    assert 32 << 20 < most < 2 * (32 << 20) + (4 << 20)


def test_small_items_let_go_of_the_memory_of_a_large_one() -> None:
    q = phalanx.Queue()
    assert put_and_get_large(q) > 32 << 20
    for _ in range(2000):
        q.put(b"s" * 5000)
        q.get()
    assert memory_of(q) < 12 << 20


def test_the_memory_of_a_large_item_is_returned_while_a_get_waits_in_vain() -> None:
    q = phalanx.Queue()
    assert put_and_get_large(q) > 32 << 20
    deadline = time.monotonic() + 30
    while memory_of(q) > 12 << 20:
        assert time.monotonic() < deadline
        with pytest.raises(queue.Empty):
            q.get(timeout=0.2)
    assert put_and_get_large(q) > 32 << 20


def test_a_queue_that_nobody_has_any_more_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    queues = [phalanx.Queue() for _ in range(10)]
    queues[0].put(1)
    del queues
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_can_be_polled_among_others(ctx: Any) -> None:
    q = ctx.SimpleQueue()
    r, w = os.pipe()
    assert connection.wait([q._reader, r], 0) == []
    process = ctx.Process(target=put_numbers, args=(q, 7, 2))
    process.start()
    assert connection.wait([q._reader, r], 30) == [q._reader]
    assert q._reader.recv() == (7, 0)
    assert connection.wait([q._reader, r], 30) == [q._reader]
    assert (q.get(), q._reader.poll()) == ((7, 1), False)
    assert connection.wait([q._reader, r], 0) == []
    q._writer.send([1])
    assert pickle.loads(q._reader.recv_bytes()) == [1]
    process.join()
    os.close(r)
    os.close(w)


def test_queues_are_the_standard_librarys_to_those_who_ask() -> None:
    assert isinstance(phalanx.Queue(), multiprocessing.queues.Queue)
    assert isinstance(phalanx.JoinableQueue(), multiprocessing.queues.JoinableQueue)
    assert isinstance(phalanx.SimpleQueue(), multiprocessing.queues.SimpleQueue)
    assert type(phalanx.Queue()).__module__ == "phalanx.queues"


def test_queues_work_in_processes_of_the_standard_library(method: str) -> None:
    standard: Any = multiprocessing.get_context(method)
    there, back = phalanx.Queue(), phalanx.SimpleQueue()
    process = standard.Process(target=echo, args=(there, back))
    process.start()
    there.put("hello")
    assert back.get() == "hello"
    there.put(...)
    process.join()
    if method == "forkserver":
        multiprocessing.forkserver._forkserver._stop()


def test_one_who_waits_hears_signals(tmp_path: Any) -> None:
    def alarm(_signum: int, _frame: Any) -> None:
        raise InterruptedError("heard")

    q = phalanx.Queue()
    previous = signal.signal(signal.SIGUSR1, alarm)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(InterruptedError, match="heard"):
            q.get()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
    wait_until(q.empty, "an empty queue")


def test_a_subclass_that_works_on_the_pipe_inside_gets_one() -> None:
    class Fed(queues.Queue):
        def __getstate__(self) -> Any:
            return self._maxsize, self._reader, self._writer

        def __setstate__(self, state: Any) -> None:
            self._maxsize, self._reader, self._writer = state

    class Named(queues.Queue):
        name = "no insides"

    assert issubclass(Named, queues.Queue)
    assert not issubclass(Fed, queues.Queue)
    assert issubclass(Fed, multiprocessing.queues.Queue)
    fed = Fed(ctx=phalanx.get_context("spawn"))
    fed.put("item")
    assert fed.get(timeout=30) == "item"
    fed.close()
    fed.join_thread()
