"""The calls of a pool do what ``multiprocessing.pool`` documents, and some more."""

import itertools
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
import threading

import numpy
import phalanx
import pytest
import tasks
from tasks import (
    add,
    fail,
    fail_on_three,
    identity,
    keep,
    kept,
    note_and_wait,
    nothing,
    pid_of_worker,
    send_pool_inside,
    sleep,
    square,
    wait_for,
    wait_until,
)

MIB = 2**20


def test_a_pool_is_one_of_multiprocessing(pool):
    assert isinstance(pool, multiprocessing.pool.Pool)
    assert isinstance(pool, phalanx.pool.Pool)


def test_apply_passes_positional_and_keyword_arguments(pool):
    assert pool.apply(add, (1, 2), {"z": 3}) == 6
    assert pool.apply(nothing) is None


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
def test_map_keeps_the_order(pool, chunksize):
    assert pool.map(square, range(100), chunksize) == [x * x for x in range(100)]


def test_map_takes_any_iterable(pool):
    assert pool.map(square, (x for x in [3, 1, 2])) == [9, 1, 4]
    assert pool.map(square, []) == []
    assert pool.map(square, iter(())) == []


def test_map_raises_what_the_task_raised(pool):
    with pytest.raises(ValueError, match="no 3 please"):
        pool.map(fail_on_three, range(10))
    assert pool.map(square, [2]) == [4]


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_starmap_spreads_its_arguments(pool, chunksize):
    pairs = list(itertools.product(range(5), repeat=2))
    assert pool.starmap(add, pairs, chunksize) == [x + y for x, y in pairs]
    assert pool.starmap_async(add, pairs, chunksize).get() == [x + y for x, y in pairs]


@pytest.mark.parametrize("chunksize", [1, 7])
def test_imap_keeps_the_order(pool, chunksize):
    assert list(pool.imap(square, range(100), chunksize)) == [x * x for x in range(100)]


@pytest.mark.parametrize("chunksize", [1, 7])
def test_imap_unordered_gives_every_result_once(pool, chunksize):
    assert sorted(pool.imap_unordered(square, range(100), chunksize)) == [x * x for x in range(100)]


def test_imap_unordered_gives_what_is_ready_first(pool, log):
    results = pool.starmap_async(note_and_wait, [(log, "started", "go")], 1)
    assert next(pool.imap_unordered(square, [3])) == 9
    log.add("go")
    assert results.get() == ["started"]


def test_imap_wants_a_chunksize_of_at_least_one(pool):
    with pytest.raises(ValueError, match="Chunksize must be 1"):
        pool.imap(square, range(3), chunksize=0)


def test_an_async_result_tells_when_it_is_ready(pool, log):
    result = pool.apply_async(wait_for, (log, "go"))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.01)
    assert not result.ready()
    log.add("go")
    result.wait()
    assert result.ready()
    assert result.successful()
    assert result.get() is None


def test_a_failed_async_result_was_not_successful(pool):
    result = pool.apply_async(fail, ("never",))
    result.wait()
    assert result.ready()
    assert not result.successful()


def test_get_raises_timeout_error_and_can_be_asked_again(pool, log):
    result = pool.apply_async(wait_for, (log, "go"))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    log.add("go")
    assert result.get() is None


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_next_raises_timeout_error_and_can_be_asked_again(pool, log, name):
    iterator = getattr(pool, name)(wait_for_line, [(log, "go")])
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.01)
    log.add("go")
    assert iterator.next() is None
    with pytest.raises(StopIteration):
        iterator.next()


def wait_for_line(arguments):
    wait_for(*arguments)


def test_callbacks_are_called_once_in_this_process(pool):
    calls = []

    def record(value):
        calls.append((os.getpid(), value))

    results = [
        pool.apply_async(square, (3,), callback=record),
        pool.map_async(square, [1, 2], callback=record),
        pool.starmap_async(add, [(1, 2)], callback=record),
    ]
    for result in results:
        result.get()
    wait_until(lambda: len(calls) == len(results), "the callbacks")
    assert sorted(calls, key=repr) == sorted(
        [(os.getpid(), 9), (os.getpid(), [1, 4]), (os.getpid(), [3])], key=repr
    )


def test_error_callbacks_get_the_exception(pool):
    errors, values = [], []
    results = [
        pool.apply_async(fail, ("one",), callback=values.append, error_callback=errors.append),
        pool.map_async(fail, ["two"], callback=values.append, error_callback=errors.append),
    ]
    for result in results:
        result.wait()
    wait_until(lambda: len(errors) == len(results), "the error callbacks")
    assert sorted(map(str, errors)) == ["one", "two"]
    assert values == []


def test_lambdas_and_closures_are_tasks(pool):
    offset = 10
    assert pool.map(lambda x: x + offset, range(3)) == [10, 11, 12]

    def double(x):
        return x * 2

    assert pool.apply(double, (4,)) == 8
    assert pool.apply(identity, (double,))(5) == 10


def test_functions_of_a_main_without_a_file_are_tasks(method):
    source = (
        "import phalanx\n"
        "def triple(x): return helper(x) * 3\n"
        "def helper(x): return x\n"
        f"pool = phalanx.get_context({method!r}).Pool(2)\n"
        "print(pool.map(triple, [1, 2, 3]))\n"
        "pool.close(); pool.join()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=30
    )
    assert (run.stdout, run.returncode) == ("[3, 6, 9]\n", 0), run.stderr


def test_functions_typed_at_a_prompt_are_tasks(method):
    typed = (
        "import phalanx\n"
        f"pool = phalanx.get_context({method!r}).Pool(2)\n"
        "def late(x):\n"
        "    return x + 1\n"
        "\n"
        "print(pool.map(late, [1, 2, 3]))\n"
        "pool.close(); pool.join()\n"
    )
    run = subprocess.run(
        [sys.executable, "-i"], input=typed, capture_output=True, text=True, check=False, timeout=30
    )
    assert "[2, 3, 4]" in run.stdout, run.stderr


def test_initializer_runs_in_every_worker(ctx):
    with ctx.Pool(2, keep, ("a value",)) as pool:
        assert pool.apply(kept) == "a value"
        assert set(pool.starmap(kept, [()] * 50, 1)) == {"a value"}
        pool.terminate()
        pool.join()


def test_tasks_run_in_as_many_processes_as_asked_for(ctx, log):
    with ctx.Pool(3) as pool:
        started = pool.starmap_async(
            note_and_wait, [(log, f"started {i}", "go") for i in range(3)], 1
        )
        wait_until(lambda: len(log.lines()) == 3, "three tasks at a time")
        log.add("go")
        assert started.get() == [f"started {i}" for i in range(3)]
        pids = {process.pid for process in pool._pool}
        assert len(pids) == 3
        assert pool.apply(pid_of_worker) in pids
        pool.terminate()
        pool.join()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"processes": 0}, ValueError),
        ({"processes": 2, "initializer": 5}, TypeError),
        ({"processes": 2, "maxtasksperchild": 0}, ValueError),
        ({"processes": 2, "maxtasksperchild": 1.5}, ValueError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error):
        phalanx.get_context("fork").Pool(**arguments)


@pytest.mark.time_limit(120)
def test_large_arguments_and_results_arrive_whole(pool):
    data = os.urandom(MIB) * 100
    assert pool.apply(identity, (data,)) == data
    assert pool.map(len, [data[: 10 * MIB]] * 3, 1) == [10 * MIB] * 3


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "f4", "f8", "c16", "M8[s]"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_of_any_type_and_order_arrive_as_they_are(pool, dtype, order):
    sent = numpy.asarray(numpy.arange(200_000) % 2, dtype, order=order).reshape(
        400, 500, order=order
    )
    for got in (pool.apply(identity, (sent,)), *pool.map(identity, [sent] * 2)):
        assert (got.dtype, got.flags.f_contiguous) == (sent.dtype, sent.flags.f_contiguous)
        assert numpy.array_equal(got, sent)


def test_messages_of_all_sizes_arrive_in_order(pool):
    sizes = [0, 1, 63, 64, 65, 4095, 4096, 4097, 65_535, 65_536, 65_537, MIB, 3 * MIB + 1]
    blobs = [bytes([i]) * size for i, size in enumerate(sizes)]
    assert pool.map(identity, blobs * 3, 1) == blobs * 3
    assert list(pool.imap(identity, blobs, 1)) == blobs


def test_more_tasks_than_any_buffer_holds(pool):
    results = [pool.apply_async(square, (i,)) for i in range(20_000)]
    assert [result.get() for result in results] == [i * i for i in range(20_000)]


def test_many_threads_use_one_pool(pool):
    failures = []

    def use(offset):
        for x in range(50):
            if pool.apply(add, (offset, x)) != offset + x:
                failures.append((offset, x))

    threads = [threading.Thread(target=use, args=(1000 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_many_threads_each_with_a_pool(method):
    # A fork while other threads run is what the other methods are there for; it is Python's own
    # risk, not ours, so a thread that forks has but one pool at a time.
    results = []

    def use(n):
        with phalanx.get_context(method).Pool(1) as pool:
            results.append(pool.map(square, range(n)))
            pool.close()
            pool.join()

    threads = [threading.Thread(target=use, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[x * x for x in range(n)] for n in range(1, 5)]


def test_several_pools_at_a_time_do_not_mix_their_results(ctx):
    pools = [ctx.Pool(1, keep, (i,)) for i in range(3)]
    assert [pool.apply(kept) for pool in pools] == [0, 1, 2]
    for pool in pools:
        pool.terminate()
        pool.join()


def test_a_child_process_can_have_a_pool(ctx, method):
    receiver, sender = ctx.Pipe(duplex=False)
    process = ctx.Process(target=send_pool_inside, args=(sender, method))
    process.start()
    sender.close()
    assert receiver.poll(30)
    assert receiver.recv() == [x * x for x in range(10)]
    process.join()
    assert process.exitcode == 0
    receiver.close()


def test_long_and_short_tasks_balance(pool):
    # One worker is held by the first task; all others have to go to the other worker.
    pids = pool.map_async(slow_first, range(20))
    pid_of_slow, *others = pids.get()
    assert pid_of_slow not in others[-10:]


def slow_first(i):
    sleep(0.5 if i == 0 else 0.01)
    return os.getpid()


# -- rows of arguments


ROWS = [(1,), [2, 3], {"x": 4, "z": 5}, (6, 7)]
SUMS = [1, 5, 9, 13]


def test_rows_of_arguments_by_place_and_by_name_in_every_call(pool):
    assert pool.map(tasks.add, ROWS, star=True) == SUMS
    assert pool.map(tasks.add, ROWS, 2, star=True) == SUMS
    assert pool.map_async(tasks.add, ROWS, star=True).get() == SUMS
    assert list(pool.imap(tasks.add, iter(ROWS), star=True)) == SUMS
    assert sorted(pool.imap_unordered(tasks.add, iter(ROWS), 2, star=True)) == SUMS


def test_rows_for_a_lambda_and_with_retries(pool):
    assert pool.map(lambda a, b: a * b, [(2, 3), {"b": 4, "a": 5}], star=True) == [6, 20]
    assert pool.map(tasks.add, ROWS, star=True, retries=1, retry_on=KeyError) == SUMS


def test_a_row_that_does_not_fit_is_an_error_that_names_the_function(pool):
    with pytest.raises(TypeError, match=r"add\(\) got an unexpected keyword argument 'w'"):
        pool.map(tasks.add, [{"w": 1}], star=True)
    with pytest.raises(TypeError, match=r"add\(\).*must be an iterable, not int"):
        pool.map(tasks.add, [3], star=True)


def test_a_death_in_a_row_names_the_function(pool):
    with pytest.raises(phalanx.WorkerDied, match=r"while running `tasks\.die`"):
        pool.map(tasks.die, [("SIGKILL",)], star=True)
