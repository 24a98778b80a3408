"""Private names of ``multiprocessing`` that programs are known to use, and what these expect."""

import multiprocessing.pool
import threading
from concurrent.futures import wait as wait_for_futures
from multiprocessing.pool import ThreadPool, starmapstar

import phalanx
import pytest
from phalanx.pool import ApplyResult, AsyncResult, IMapIterator, IMapUnorderedIterator, MapResult
from tasks import add, identity, note_and_wait, square, wait_until


def istarmap(pool, func, rows, chunksize=1, made=IMapIterator):
    """An ``imap`` with rows, put together as programs do that have it from each other."""
    pool._check_running()
    batches = type(pool)._get_tasks(func, rows, chunksize)
    result = made(pool)
    tasks = pool._guarded_task_generation(result._job, starmapstar, batches)
    pool._taskqueue.put((tasks, result._set_length))
    return (item for chunk in result for item in chunk)


def raises(first, _second):
    raise KeyError(first)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_an_imap_can_be_put_together_by_hand(pool, chunksize):
    rows = [(i, i) for i in range(10)]
    assert list(istarmap(pool, add, rows, chunksize)) == [2 * i for i in range(10)]
    unordered = istarmap(pool, add, iter(rows), chunksize, IMapUnorderedIterator)
    assert sorted(unordered) == [2 * i for i in range(10)]
    with pytest.raises(KeyError, match="5"):
        next(istarmap(pool, raises, [(5, 6)], chunksize))


def test_an_imap_by_hand_tells_what_its_input_raises(pool):
    def rows():
        yield 1, 2
        raise ValueError("in the input")

    results = istarmap(pool, add, rows())
    assert next(results) == 3
    with pytest.raises(ValueError, match="in the input"):
        next(results)


def test_only_an_iterator_can_be_given_tasks(pool):
    with pytest.raises(TypeError, match="only an IMapIterator can be given tasks, not None"):
        pool._taskqueue.put(([], None))


def test_results_are_of_the_types_that_have_their_names(pool):
    assert isinstance(pool.imap(square, [1]), IMapIterator)
    assert isinstance(pool.imap_unordered(square, [1]), IMapUnorderedIterator)
    assert isinstance(pool.apply_async(square, (1,)), ApplyResult)
    assert isinstance(pool.map_async(square, [1]), MapResult)


def test_a_type_of_results_can_be_said():
    said = AsyncResult[int]
    assert (said.__origin__, said.__args__) == (AsyncResult, (int,))


def test_a_pool_tells_how_many_tasks_wait_and_calls_have_not_ended(log):
    with phalanx.get_context("fork").Pool(1) as pool:
        assert (len(pool._cache), pool._taskqueue.qsize()) == (0, 0)
        first = pool.apply_async(note_and_wait, (log, "begun", "go on"))
        wait_until(log.lines, "the first task")
        others = [pool.apply_async(identity, (i,)) for i in range(1000)]
        mapped = pool.map_async(identity, range(100), chunksize=1)
        assert mapped._number_left == 100
        assert len(pool._cache) == 1002
        assert not pool._taskqueue.empty()
        assert 0 < pool._taskqueue.qsize() <= 1100
        log.add("go on")
        wait_until(lambda: not pool._cache, "the end of all calls")
        assert pool._taskqueue.empty()
        assert first.ready()
        assert all(it.ready() for it in others)
        assert mapped._number_left == 0


def test_a_call_has_not_ended_before_its_callback_has():
    called, go_on = threading.Event(), threading.Event()

    def callback(_result):
        called.set()
        go_on.wait(20)

    with phalanx.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(square, (3,), callback=callback)
        assert called.wait(20)
        assert list(pool._cache.values()) == [result]
        assert len(pool._cache) == 1
        go_on.set()
        wait_until(lambda: not pool._cache, "the end of the callback")
        assert result.get() == 9


def test_a_pool_of_threads_is_a_pool():
    with ThreadPool(1) as pool:
        assert isinstance(pool, phalanx.pool.Pool)
        assert isinstance(pool, multiprocessing.pool.Pool)
    assert not isinstance(3, phalanx.pool.Pool)


def test_an_executor_tells_how_many_calls_have_not_ended(log):
    context = phalanx.get_context("fork")
    with phalanx.ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor._pending_work_items == {}
        first = executor.submit(note_and_wait, log, "begun", "go on")
        second = executor.submit(square, 2)
        assert [it.future for it in executor._pending_work_items.values()] == [first, second]
        log.add("go on")
        wait_for_futures([first, second])
        wait_until(lambda: not executor._pending_work_items, "the end of both calls")


def test_workers_of_an_executor_are_named_as_processes(ctx):
    with phalanx.ProcessPoolExecutor(1, mp_context=ctx) as executor:
        name = executor.submit(process_name).result()
    assert "Process-" in name


def process_name() -> str:
    return phalanx.current_process().name


def test_a_joinable_queue_can_be_joined_for_a_time():
    queue = phalanx.JoinableQueue()
    queue.put("item")
    with queue._cond:
        assert not queue._unfinished_tasks._semlock._is_zero()
        assert not queue._cond.wait(timeout=0.01)
    assert queue._unfinished_tasks.get_value() == 1
    assert queue.get() == "item"
    queue.task_done()
    with queue._cond:
        assert queue._cond.wait(timeout=20)
    assert queue._unfinished_tasks._semlock._is_zero()
    queue.close()
