"""What is told to ``logging``: launches, deaths, restarts; nothing unless somebody listens."""

import logging
import os
import signal
import subprocess
import sys
import time

import phalanx
import pytest
from tasks import nothing, wait_until


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
