"""Whatever a task, its argument or its result does wrong is an error of that task alone."""

import multiprocessing.pool
import pickle
import sys
import threading
import traceback

import phalanx
import pytest
from tasks import (
    BASE_EXCEPTIONS,
    FailsToLoad,
    add,
    exit_by_sys,
    fail,
    identity,
    initializer_that_fails,
    pid_of_worker,
    raise_base,
    raise_not_picklable,
    raise_not_rebuildable,
    return_fails_to_load,
    return_not_picklable,
    square,
    wait_until,
)


def still_works(pool):
    """The pool lost neither its workers nor its mind."""
    return pool.map(square, range(10), 1) == [x * x for x in range(10)]


def test_an_exception_has_the_workers_traceback_as_its_cause(pool):
    with pytest.raises(ValueError, match="the message") as caught:
        pool.apply(fail, ("the message",))
    cause = caught.value.__cause__
    assert isinstance(cause, multiprocessing.pool.RemoteTraceback)
    assert "in fail" in str(cause)
    assert "Traceback (most recent call last)" in str(cause)
    assert "in fail" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("name", BASE_EXCEPTIONS)
def test_a_base_exception_costs_only_its_task(pool, name):
    before = {process.pid for process in pool._pool}
    result = pool.apply_async(raise_base, (name,))
    with pytest.raises(BASE_EXCEPTIONS[name], match="from the task") as caught:
        result.get()
    assert "raise_base" in "".join(traceback.format_exception(caught.value))
    assert still_works(pool)
    assert {process.pid for process in pool._pool} == before


@pytest.mark.parametrize("status", [0, 1, "a reason"])
def test_sys_exit_costs_only_its_task(pool, status):
    with pytest.raises(SystemExit) as caught:
        pool.apply(exit_by_sys, (status,))
    assert caught.value.code == status
    assert still_works(pool)


def test_an_exception_that_cannot_be_pickled_arrives_as_text(pool):
    with pytest.raises(phalanx.RemoteError, match="NotPicklable") as caught:
        pool.apply(raise_not_picklable)
    assert "my lock" in str(caught.value)
    assert "raise_not_picklable" in "".join(traceback.format_exception(caught.value))
    assert still_works(pool)


def test_an_exception_that_cannot_be_rebuilt_arrives_as_text(pool):
    with pytest.raises(phalanx.RemoteError, match="NotRebuildable") as caught:
        pool.apply(raise_not_rebuildable)
    assert "7: too many" in str(caught.value)
    assert "raise_not_rebuildable" in "".join(traceback.format_exception(caught.value))
    assert still_works(pool)


def test_a_result_that_cannot_be_pickled_is_told(pool):
    with pytest.raises(multiprocessing.pool.MaybeEncodingError, match="lock"):
        pool.apply(return_not_picklable)
    assert still_works(pool)


def test_one_result_that_cannot_be_pickled_spares_the_others(pool):
    iterator = pool.imap(lambda x: threading.Lock() if x == 2 else x, range(5))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(multiprocessing.pool.MaybeEncodingError):
        next(iterator)
    assert list(iterator) == [3, 4]


def test_a_result_that_cannot_be_loaded_is_told(pool):
    with pytest.raises(Exception, match="cannot be loaded"):
        pool.apply(return_fails_to_load)
    assert still_works(pool)


def test_an_argument_that_cannot_be_loaded_is_told(pool):
    with pytest.raises(Exception, match="cannot be loaded"):
        pool.apply(identity, (FailsToLoad(),))
    assert still_works(pool)


def test_an_argument_that_cannot_be_pickled_raises_here_and_names_the_part(pool):
    argument = {"fine": 1, "the_lock": [threading.Lock()]}
    with pytest.raises((TypeError, pickle.PicklingError)) as caught:
        pool.apply_async(identity, (argument,))
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "the_lock" in said
    assert "lock" in said
    assert still_works(pool)


@pytest.mark.parametrize("name", ["map", "map_async", "starmap", "starmap_async"])
def test_an_item_that_cannot_be_pickled_raises_here(pool, name):
    items = [(1,), (2,), (threading.Lock(),)]
    with pytest.raises((TypeError, pickle.PicklingError), match="lock"):
        getattr(pool, name)(identity, items)
    assert still_works(pool)


@pytest.mark.parametrize("kind", [list, iter])
def test_an_item_of_imap_that_cannot_be_pickled_raises_here(pool, kind):
    """Where the item is read: in the call if that is at once, else when its turn comes."""
    with pytest.raises((TypeError, pickle.PicklingError), match="lock"):
        list(pool.imap(identity, kind([1, threading.Lock(), 3])))
    assert still_works(pool)


def test_calling_with_the_wrong_arguments_is_the_tasks_error(pool):
    with pytest.raises(TypeError, match="add"):
        pool.apply(add, (1, 2, 3, 4))
    assert still_works(pool)


@pytest.fixture
def reports(monkeypatch):
    """What the interpreter's hooks for uncaught exceptions were told, as text."""
    said = []

    def hook(*arguments):
        said.append(repr(arguments) + "".join(map(str, arguments)))

    monkeypatch.setattr(sys, "excepthook", hook)
    monkeypatch.setattr(sys, "unraisablehook", hook)
    monkeypatch.setattr(threading, "excepthook", hook)
    return said


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_callback_that_raises_is_reported_and_not_fatal(pool, reports, error):
    def callback(_value):
        raise error("from the callback")

    assert pool.apply_async(square, (3,), callback=callback).get() == 9
    wait_until(lambda: any("from the callback" in each for each in reports), "the report")
    seen = []
    assert pool.apply_async(square, (4,), callback=seen.append).get() == 16
    wait_until(lambda: seen == [16], "the next callback")
    assert still_works(pool)


def test_a_failing_initializer_fails_every_waiting_call_with_its_traceback(ctx, log):
    pool = ctx.Pool(2, initializer_that_fails, (log, "raise"))
    waiting = []
    for _ in range(5):
        # A pool that has learned of the failure refuses; one that has not takes the task.
        try:
            waiting.append(pool.apply_async(square, (1,)))
        except phalanx.InitializerFailed:
            break
    for result in waiting:
        with pytest.raises(phalanx.InitializerFailed, match="no such model") as caught:
            result.get()
        assert "initializer_that_fails" in "".join(traceback.format_exception(caught.value))
    with pytest.raises(phalanx.InitializerFailed):
        pool.map(square, range(3))
    pool.terminate()
    pool.join()


@pytest.mark.parametrize("how", ["raise", "os._exit", "SIGKILL"])
def test_a_failing_initializer_is_not_tried_without_end(ctx, log, how):
    pool = ctx.Pool(2, initializer_that_fails, (log, how))
    with pytest.raises((phalanx.InitializerFailed, phalanx.WorkerDied)):
        pool.map(square, range(3))
    pool.terminate()
    pool.join()
    assert 1 <= len(log.lines()) <= 10


def test_a_failure_is_told_once_for_each_call_and_then_the_pool_goes_on(pool):
    before = pool.apply(pid_of_worker)
    results = [pool.apply_async(fail, (str(i),)) for i in range(20)]
    for i, result in enumerate(results):
        with pytest.raises(ValueError, match=f"^{i}$"):
            result.get()
    assert before in {process.pid for process in pool._pool}


def test_phalanx_errors_are_exceptions_that_pickle(pool):
    with pytest.raises(phalanx.RemoteError) as caught:
        pool.apply(raise_not_rebuildable)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value)
    assert str(again) == str(caught.value)
