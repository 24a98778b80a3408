"""phalanx.ProcessPoolExecutor: concurrent.futures, deaths included."""

import asyncio
import concurrent.futures
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from itertools import count

import phalanx
import pytest
import tasks
from phalanx.futures import ProcessPoolExecutor
from tasks import DEADLINE, Log


@pytest.fixture
def executor(ctx: "phalanx.context.BaseContext") -> Iterator[ProcessPoolExecutor]:
    """An executor of two workers, of each start method in turn; shut down afterwards."""
    executor = phalanx.ProcessPoolExecutor(2, ctx)
    yield executor
    executor.shutdown()


def test_it_is_one_of_concurrent_futures(executor: ProcessPoolExecutor) -> None:
    assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    future = executor.submit(tasks.add, 2, y=3, z=4)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(DEADLINE) == 9
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert future.exception() is None


def test_futures_are_waited_for_in_every_way(executor: ProcessPoolExecutor) -> None:
    futures = [executor.submit(tasks.square, n) for n in range(500)]
    done, not_done = concurrent.futures.wait(futures[:100], DEADLINE)
    assert (len(done), len(not_done)) == (100, 0)
    completed = concurrent.futures.as_completed(futures, DEADLINE)
    assert sorted(future.result() for future in completed) == [n * n for n in range(500)]


def test_a_callback_is_called_once_before_and_after_the_end(executor: ProcessPoolExecutor) -> None:
    called: list[int] = []
    future = executor.submit(tasks.square, 7)
    future.add_done_callback(lambda it: called.append(it.result()))
    tasks.wait_until(lambda: called, "the callback")
    future.add_done_callback(lambda it: called.append(it.result() + 1))
    assert called == [49, 50]


def test_asyncio_gets_results_and_exceptions(executor: ProcessPoolExecutor) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, tasks.square, n) for n in range(1000)]
        assert await asyncio.gather(*calls) == [n * n for n in range(1000)]
        with pytest.raises(ValueError, match="no luck"):
            await loop.run_in_executor(executor, tasks.fail, "no luck")
        with pytest.raises(phalanx.WorkerDied):
            await loop.run_in_executor(executor, tasks.die, "SIGKILL")

    asyncio.run(main())


def test_cancelling_in_asyncio_takes_the_call_back(executor: ProcessPoolExecutor, log: Log) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        blockers = [
            loop.run_in_executor(executor, tasks.note_and_wait, log, n, "go") for n in range(2)
        ]
        await asyncio.to_thread(tasks.wait_until, lambda: len(log.lines()) == 2, "both workers")
        waiting = loop.run_in_executor(executor, tasks.note, log, "never")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)  # in this turn of its loop asyncio tells the executor
        log.add("go")
        await asyncio.gather(*blockers)

    asyncio.run(main())
    executor.shutdown()
    assert "never" not in log.lines()


def test_an_exception_has_the_workers_traceback(executor: ProcessPoolExecutor) -> None:
    future = executor.submit(tasks.fail, "no luck")
    with pytest.raises(ValueError, match="no luck") as caught:
        future.result(DEADLINE)
    assert type(caught.value.__cause__).__name__ == "_RemoteTraceback"
    assert "in fail" in str(caught.value.__cause__)
    assert future.exception() is caught.value


def test_what_cannot_be_sent_fails_its_future(executor: ProcessPoolExecutor) -> None:
    assert isinstance(executor.submit(tasks.identity, threading.Lock()).exception(), TypeError)
    assert executor.submit(tasks.square, 3).result(DEADLINE) == 9


def test_a_lambda_is_sent_by_value(executor: ProcessPoolExecutor) -> None:
    assert executor.submit(lambda x: x + 1, 3).result(DEADLINE) == 4


def test_map_gives_results_in_order(executor: ProcessPoolExecutor) -> None:
    assert list(executor.map(tasks.square, range(300))) == [n * n for n in range(300)]
    assert list(executor.map(tasks.add, range(10), range(5))) == [0, 2, 4, 6, 8]
    squares = executor.map(tasks.square, range(300), chunksize=7)
    assert list(squares) == [n * n for n in range(300)]
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(tasks.square, [1], chunksize=wrong)
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(tasks.square, [1], buffersize=wrong)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(tasks.square, [1], buffersize="1")  # type: ignore[arg-type]


def test_map_reads_an_endless_input_with_buffersize(executor: ProcessPoolExecutor) -> None:
    numbers = count()
    squares = executor.map(tasks.square, numbers, buffersize=4)
    assert [next(squares) for _ in range(10)] == [n * n for n in range(10)]
    assert next(numbers) == 14, "four are read ahead"
    squares.close()  # type: ignore[attr-defined]


def test_map_has_a_timeout(executor: ProcessPoolExecutor, log: Log) -> None:
    waiting = executor.map(tasks.wait_for, [log], ["go"], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(waiting)
    log.add("go")


def test_cancel_takes_back_what_has_not_begun(executor: ProcessPoolExecutor, log: Log) -> None:
    running = [executor.submit(tasks.note_and_wait, log, n, "go") for n in range(2)]
    tasks.wait_until(lambda: len(log.lines()) == 2, "both workers")
    waiting = [executor.submit(tasks.note, log, f"w{n}") for n in range(300)]
    tasks.wait_until(lambda: all(future.running() for future in running), "running")
    assert not any(future.cancel() for future in running)
    for order in (waiting[:50], waiting[150:50:-1]):
        assert all(future.cancel() for future in order)
        assert all(future.cancelled() and future.done() and future.cancel() for future in order)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting[0].result()
    done, _ = concurrent.futures.wait(waiting[:50], DEADLINE)
    assert len(done) == 50
    log.add("go")
    assert [future.result(DEADLINE) for future in running] == [0, 1]
    left = [n for n in range(300) if not waiting[n].cancelled()]
    assert len(left) == 150
    assert [waiting[n].result(DEADLINE) for n in left] == [f"w{n}" for n in left]
    assert sorted(log.lines()) == sorted(["0", "1", "go", *(f"w{n}" for n in left)])


def test_many_threads_submit_and_cancel(executor: ProcessPoolExecutor) -> None:
    sums = []

    def use() -> None:
        futures = [executor.submit(tasks.identity, n) for n in range(300)]
        cancelled = {n for n in range(0, 300, 3) if futures[n].cancel()}
        sums.append(
            all(f.result(DEADLINE) == n for n, f in enumerate(futures) if n not in cancelled)
        )

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [True] * 8


@pytest.mark.parametrize("how", ["SIGKILL", "segfault", "os._exit"])
def test_a_dead_worker_costs_its_own_task_only(executor: ProcessPoolExecutor, how: str) -> None:
    before = [executor.submit(tasks.square, n) for n in range(100)]
    dying = executor.submit(tasks.die, how)
    after = [executor.submit(tasks.square, n) for n in range(100)]
    with pytest.raises(BrokenProcessPool) as caught:
        dying.result(DEADLINE)
    assert isinstance(caught.value, phalanx.WorkerDied)
    assert caught.value.task == "tasks.die"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, BrokenProcessPool)
    assert copy.pid == caught.value.pid
    assert [future.result(DEADLINE) for future in before + after] == [n * n for n in range(100)] * 2
    assert executor.submit(tasks.square, 3).result(DEADLINE) == 9


def test_workers_start_as_they_are_needed(method: str) -> None:
    with phalanx.ProcessPoolExecutor(3, phalanx.get_context(method)) as executor:
        assert executor._processes == {}
        for _ in range(5):
            executor.submit(tasks.nothing).result(DEADLINE)
            tasks.wait_until(lambda: not executor._crew.futures.outstanding(), "the end")
        assert len(executor._processes) == (3 if method == "fork" else 1)
        executor.submit(tasks.slow_pid, 0.1)
        executor.submit(tasks.slow_pid, 0.1)
        assert len(executor._processes) == (3 if method == "fork" else 2)
    assert executor._processes is None


def test_an_initializer_runs_in_each_worker(ctx: "phalanx.context.BaseContext") -> None:
    with phalanx.ProcessPoolExecutor(2, ctx, tasks.keep, ("a value",)) as executor:
        assert {executor.submit(tasks.kept).result(DEADLINE) for _ in range(20)} == {"a value"}


def test_a_failing_initializer_breaks_the_executor(
    ctx: "phalanx.context.BaseContext", log: Log
) -> None:
    initargs = (log, "raise")
    with phalanx.ProcessPoolExecutor(2, ctx, tasks.initializer_that_fails, initargs) as executor:
        # Forked workers may be quicker to fail than this is to submit.
        with pytest.raises(BrokenProcessPool, match="no such model") as caught:
            executor.submit(tasks.nothing).result(DEADLINE)
        assert isinstance(caught.value, phalanx.InitializerFailed)
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.nothing)


def test_max_tasks_per_child_replaces_workers(method: str) -> None:
    ctx = phalanx.get_context(method)
    if method == "fork":
        with pytest.raises(ValueError, match="fork"):
            phalanx.ProcessPoolExecutor(1, ctx, max_tasks_per_child=2)
        return
    with phalanx.ProcessPoolExecutor(1, ctx, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result(DEADLINE) for _ in range(6)]
    assert len(set(pids)) == 3


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="max_workers"):
        phalanx.ProcessPoolExecutor(0)
    with pytest.raises(TypeError, match="initializer"):
        phalanx.ProcessPoolExecutor(1, initializer=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_tasks_per_child"):
        phalanx.ProcessPoolExecutor(1, max_tasks_per_child="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        phalanx.ProcessPoolExecutor(1, max_tasks_per_child=0)


def test_tasks_may_start_processes(executor: ProcessPoolExecutor, method: str) -> None:
    assert executor.submit(tasks.child_of_a_task, method).result(DEADLINE) == 0


def test_after_shutdown_nothing_can_be_submitted(ctx: "phalanx.context.BaseContext") -> None:
    executor = phalanx.ProcessPoolExecutor(2, ctx)
    futures = [executor.submit(tasks.square, n) for n in range(200)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.square, 1)
    assert [future.result(DEADLINE) for future in futures] == [n * n for n in range(200)]
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.square, 1)
    unused = phalanx.ProcessPoolExecutor(2, ctx)
    unused.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        unused.submit(tasks.square, 1)


def test_shutdown_cancels_what_has_not_begun(ctx: "phalanx.context.BaseContext", log: Log) -> None:
    executor = phalanx.ProcessPoolExecutor(1, ctx)
    running = executor.submit(tasks.note_and_wait, log, "begun", "go")
    tasks.wait_until(log.lines, "the worker")
    waiting = [executor.submit(tasks.note, log, "never") for _ in range(100)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    log.add("go")
    executor.shutdown()
    assert running.result() == "begun"
    assert log.lines() == ["begun", "go"]


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_workers_can_be_ended(ctx: "phalanx.context.BaseContext", log: Log, end: str) -> None:
    executor = phalanx.ProcessPoolExecutor(1, ctx)
    running = executor.submit(tasks.note_and_wait, log, "begun", "never")
    tasks.wait_until(log.lines, "the worker")
    waiting = executor.submit(tasks.nothing)
    getattr(executor, end)()
    assert waiting.cancelled()
    with pytest.raises(BrokenProcessPool, match=end):
        running.result(DEADLINE)
    executor.shutdown()


def test_an_executor_that_nobody_has_ends_after_its_last_task(
    ctx: "phalanx.context.BaseContext",
) -> None:
    executor = phalanx.ProcessPoolExecutor(2, ctx)
    futures = [executor.submit(tasks.square, n) for n in range(50)]
    crew = weakref.ref(executor._crew)
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert [future.result(DEADLINE) for future in futures] == [n * n for n in range(50)]
    tasks.wait_until(lambda: crew() is None, "the workers' end")


def test_a_result_is_kept_by_its_future_only(executor: ProcessPoolExecutor) -> None:
    future = executor.submit(tasks.an_object)
    kept = weakref.ref(future.result(DEADLINE))
    del future
    tasks.wait_until(lambda: kept() is None, "the result to be gone")


def test_a_forked_child_is_told(executor: ProcessPoolExecutor, log: Log) -> None:
    pending = executor.submit(tasks.wait_for, log, "go")
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        said = []
        for call in (lambda: executor.submit(tasks.nothing), pending.result):
            said.append(_what_it_raises(call))
        executor.shutdown()
        os.write(write, " | ".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as text:
        said = text.read()
    os.waitpid(pid, 0)
    log.add("go")
    assert said.count("forked from") + said.count("from which this one was forked") == 2, said
    assert pending.result(DEADLINE) is None


def _what_it_raises(call: Callable[[], object]) -> str:
    try:
        return f"returned {call()}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def test_the_interpreter_waits_for_pending_futures(method: str) -> None:
    program = (
        "import phalanx, tasks, time\n"
        "if __name__ == '__main__':\n"
        f"    executor = phalanx.ProcessPoolExecutor(2, phalanx.get_context({method!r}))\n"
        "    for n in range(3):\n"
        "        future = executor.submit(tasks.slow_pid, 0.2)\n"
        "        future.add_done_callback(lambda _: print('done', flush=True))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n" * 3, "", 0)


def test_a_killed_idle_worker_costs_nothing(executor: ProcessPoolExecutor) -> None:
    pid = executor.submit(os.getpid).result(DEADLINE)
    os.kill(pid, signal.SIGKILL)
    assert [f.result(DEADLINE) for f in [executor.submit(tasks.square, n) for n in range(50)]] == [
        n * n for n in range(50)
    ]


def test_no_result_waits_for_a_later_task(ctx: "phalanx.context.BaseContext", log: Log) -> None:
    with phalanx.ProcessPoolExecutor(1, ctx) as executor:
        for n in range(50):
            executor.submit(tasks.nothing).result(DEADLINE)
            quick = executor.submit(tasks.nothing)
            slow = executor.submit(tasks.wait_for, log, f"go {n}")
            quick.result(DEADLINE)
            log.add(f"go {n}")
            slow.result(DEADLINE)


@pytest.mark.parametrize("turn", range(10))
def test_the_first_result_of_a_process_arrives(turn: int) -> None:
    program = (
        "import phalanx, tasks\n"
        "executor = phalanx.ProcessPoolExecutor(2, phalanx.get_context('forkserver'))\n"
        "if __name__ == '__main__':\n"
        "    futures = [executor.submit(tasks.square, n) for n in range(2)]\n"
        "    assert [future.result(20) for future in futures] == [0, 1]\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=os.path.dirname(__file__),
        timeout=DEADLINE * 2,
        check=False,
    )
    assert run.returncode == 0


def test_waiting_has_a_timeout(executor: ProcessPoolExecutor, log: Log) -> None:
    future = executor.submit(tasks.wait_for, log, "go")
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(0.05)
    assert time.monotonic() - began < DEADLINE / 2
    log.add("go")
