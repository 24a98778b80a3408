"""What is told to ``logging``: launches, deaths, restarts; nothing unless somebody listens."""

import importlib.machinery
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types

import phalanx
import pytest
from phalanx import _log, _records
from tasks import nothing, wait_until


def report(n: int) -> int:
    """A task that logs."""
    log = logging.getLogger("tests.report")
    log.info("task %d", n, extra={"number": n, "lock": threading.Lock()})
    log.debug("nobody wants to know")
    try:
        raise ValueError(n)
    except ValueError:
        log.exception("bad %d", n)
    return n


def report_and_die() -> None:
    logging.getLogger("tests.report").error("last words")
    die()


def report_in_threads(count: int) -> None:
    def tell(which: int) -> None:
        for n in range(count):
            logging.getLogger("tests.report").warning("%d %s", which, "x" * (n % 7) * 9999)

    threads = [threading.Thread(target=tell, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def report_in_a_fork() -> int:
    if (pid := os.fork()) == 0:
        logging.getLogger("tests.report").error("from a fork of a worker")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def report_below(method: str) -> None:
    with phalanx.get_context(method).Pool(1) as pool:
        pool.apply(report, (5,))
        pool.close()
        pool.join()


def set_up() -> None:
    logging.basicConfig(handlers=[logging.NullHandler()])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def texts(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="phalanx")
    return caplog


def test_launches_are_told_in_detail_only(ctx, told):
    process = ctx.Process(target=nothing)
    process.start()
    process.join()
    with ctx.Pool(2) as pool:
        pool.apply(nothing)
    assert f"process {process.pid} was started with {ctx._name}" in texts(told, logging.DEBUG)
    assert sum("PoolWorker" in text for text in texts(told, logging.DEBUG)) == 2
    assert {record.levelno for record in told.records} == {logging.DEBUG}


def test_a_workers_death_is_a_warning_that_says_who_and_how(ctx, told):
    with ctx.Pool(1) as pool:
        with pytest.raises(phalanx.WorkerDied) as caught:
            pool.apply(die)
        pool.apply(nothing)
    (text,) = texts(told, logging.WARNING)
    assert f"(pid {caught.value.pid})" in text
    assert "was killed by SIGKILL; another takes its place" in text


def test_one_that_leaves_as_agreed_is_no_warning(ctx, told):
    with ctx.Pool(1, maxtasksperchild=1) as pool:
        pool.map(abs, range(3), 1)
        pool.close()
        pool.join()
    assert not texts(told, logging.WARNING)
    assert any("exited with code 0" in text for text in texts(told, logging.DEBUG))


def test_a_pool_that_ends_before_its_time_is_an_error(ctx, told):
    with ctx.Pool(1, intensity=0) as pool:
        with pytest.raises(phalanx.WorkerDied):
            pool.apply(die)
        wait_until(lambda: texts(told, logging.ERROR), "the error")
    (text,) = texts(told, logging.ERROR)
    assert "a pool has ended before its time: supervisor `pool` gave up" in text


def test_a_terminated_pool_is_none(ctx, told):
    with ctx.Pool(1) as pool:
        pool.apply_async(time.sleep, (600,))
    pool.join()
    assert not texts(told, logging.ERROR)


def test_a_childs_death_is_a_warning_and_a_supervisors_end_an_error(ctx, told):
    child = phalanx.ChildSpec(name="doomed", target=die)
    supervisor = phalanx.Supervisor([child], intensity=1, context=ctx).start()
    with pytest.raises(phalanx.SupervisorFailed):
        supervisor.join()
    assert sum("was killed by SIGKILL" in text for text in texts(told, logging.WARNING)) == 2
    wait_until(lambda: texts(told, logging.ERROR), "the error")
    assert "gave up" in texts(told, logging.ERROR)[0]


def test_a_templates_death_is_a_warning(told):
    ctx = phalanx.get_context("forkserver")
    ctx.Pool(1).terminate()
    pid = phalanx.forkserver._forkserver._forkserver_pid
    os.kill(pid, signal.SIGKILL)
    process = ctx.Process(target=nothing)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert texts(told, logging.WARNING) == [
        f"the template process {pid} has died; another is started"
    ]


def test_nobody_is_bothered_who_has_not_asked(method):
    program = f"""
import phalanx, sys, os
if __name__ == "__main__":
    assert "logging" not in sys.modules
    with phalanx.get_context({method!r}).Pool(1) as pool:
        for _ in range(2):
            try: pool.apply(os._exit, (3,))
            except phalanx.WorkerDied: pass
            import logging
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr) == ("", "")


# -- what tasks log


@pytest.fixture(params=["spawn", "forkserver"])
def ours(request, caplog):
    """A pool of two workers that have none of our handlers, which `caplog` has set up."""
    caplog.set_level(logging.INFO)
    pool = phalanx.get_context(request.param).Pool(2)
    yield pool
    pool.terminate()
    pool.join()


def reports(caplog, name="tests.report"):
    return [record for record in caplog.records if record.name == name]


def test_what_tasks_log_is_handled_by_our_handlers(ours, caplog):
    assert ours.map(report, range(3), 1) == [0, 1, 2]
    ours.close()
    ours.join()
    told = reports(caplog)
    assert sorted(record.getMessage() for record in told) == [
        *(f"bad {n}" for n in range(3)),
        *(f"task {n}" for n in range(3)),
    ]
    pids = {process.pid: process.name for process in ours._pool}
    assert all(pids[record.process] == record.processName for record in told)
    assert len({record.task_id for record in told}) == 3, "one number for both records of a task"
    infos = [record for record in told if record.levelno == logging.INFO]
    assert sorted(record.number for record in infos) == [0, 1, 2]
    assert all("lock" in record.lock for record in infos), "what cannot be sent is described"
    assert all("raise ValueError(n)" in record.exc_text for record in told if record not in infos)


def test_the_last_words_of_one_that_dies_are_heard(ours, caplog):
    with pytest.raises(phalanx.WorkerDied):
        ours.apply(report_and_die)
    ours.close()
    ours.join()
    assert [record.getMessage() for record in reports(caplog)] == ["last words"]


def test_threads_of_a_worker_log_while_it_returns_results(ours, caplog):
    results = ours.map_async(bytes, range(0, 300_000, 100), 10)
    ours.apply(report_in_threads, (200,))
    assert list(map(len, results.get())) == list(range(0, 300_000, 100))
    ours.close()
    ours.join()
    for which in range(4):
        told = [text for text in (r.getMessage() for r in reports(caplog)) if text[0] == f"{which}"]
        assert [len(text) for text in told] == [2 + n % 7 * 9999 for n in range(200)]


def test_who_sets_up_logging_in_the_worker_has_it_there(ctx, caplog):
    with ctx.Pool(1, set_up) as pool:
        pool.apply(report, (1,))
        pool.close()
        pool.join()
    assert ctx._name == "fork" or not reports(caplog)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_fork_of_a_worker_does_not_speak_for_it(method, capfd, caplog):
    with phalanx.get_context(method).Pool(1) as pool:
        assert pool.apply(report_in_a_fork) == 0
        pool.close()
        pool.join()
    assert not reports(caplog)
    assert "from a fork of a worker" in capfd.readouterr().err


def test_a_worker_of_a_worker_is_heard_at_the_top(ours, caplog):
    ours.apply(report_below, (ours._ctx._name,))
    ours.close()
    ours.join()
    assert sorted(record.getMessage() for record in reports(caplog)) == ["bad 5", "task 5"]


def test_an_executors_tasks_are_heard_too(caplog):
    caplog.set_level(logging.INFO)
    with phalanx.ProcessPoolExecutor(1, phalanx.get_context("spawn")) as executor:
        assert executor.submit(report, 4).result() == 4
    assert sorted(record.getMessage() for record in reports(caplog)) == ["bad 4", "task 4"]


def test_a_program_without_handlers_has_no_part_in_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""\
import phalanx, sys
def task():
    import logging
    logging.getLogger("x").warning("as it is")
    return type(logging.lastResort).__name__
if __name__ == "__main__":
    with phalanx.get_context("spawn").Pool(1) as pool:
        print(pool.apply(task))
""")
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("_StderrHandler\n", "as it is\n")


def test_a_logging_that_some_thread_is_importing_is_not_there_yet(monkeypatch):
    unfinished = types.ModuleType("logging")
    unfinished.__spec__ = importlib.machinery.ModuleSpec("logging", None)
    unfinished.__spec__._initializing = True
    monkeypatch.setitem(sys.modules, "logging", unfinished)
    monkeypatch.setattr(_log, "_logger", None)
    assert _records.levels() is None
    _log.warning("nobody can be listening")
    unfinished.__spec__._initializing = False
    assert _log.imported_logging() is unfinished
