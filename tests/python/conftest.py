"""Fixtures for all tests: every start method, a time limit, and nothing left behind."""

import contextlib
import faulthandler
import gc
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

import phalanx
import pytest
from leaks import Holdings, adopt_orphans, kill_since, leaked_since, reap_orphans
from programs import Program
from tasks import Log, nothing

TIME_LIMIT = 60  # seconds that a test may take, unless it says @pytest.mark.time_limit(n)
LAST_RESORT = 20  # more seconds, after which a test that cannot be interrupted ends the run
SETTLE = 5.0  # seconds that what a test has stopped may take to be gone

_stderr = 2


def pytest_configure(config: pytest.Config) -> None:
    """Declare our marks, adopt orphans, and keep the terminal's stderr for the last resort."""
    global _stderr  # noqa: PLW0603
    config.addinivalue_line("markers", "time_limit(seconds): how long this test may take")
    # Our own watchdog is a thread, and CPython warns of any fork that has a second one around.
    config.addinivalue_line("filterwarnings", "ignore:.*multi-threaded.*fork:DeprecationWarning")
    _stderr = os.dup(2)  # pytest captures 2 while tests run
    adopt_orphans()


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def method(request: pytest.FixtureRequest) -> str:
    """Each start method in turn."""
    return request.param


@pytest.fixture
def ctx(method: str) -> "phalanx.context.BaseContext":
    """phalanx's context of each start method in turn."""
    return phalanx.get_context(method)


class TookTooLong(BaseException):
    """A test ran into its time limit; no ``except Exception`` of its own is to swallow that."""


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Interrupt a test that takes too long; end the whole run if even that does not help."""
    mark = request.node.get_closest_marker("time_limit")
    seconds = mark.args[0] if mark else TIME_LIMIT

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback(file=_stderr)
        raise TookTooLong(f"{request.node.nodeid} took longer than {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, interrupt)
    faulthandler.dump_traceback_later(seconds + LAST_RESORT, exit=True, file=_stderr)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def _warm() -> None:
    """Start what is started once a process and then stays: it is no test's leak."""
    resource_tracker.ensure_running()
    phalanx.Lock()  # the arena that small shared objects are cut from
    for name in ("fork", "spawn", "forkserver"):
        context = phalanx.get_context(name)
        process = context.Process(target=nothing)
        process.start()
        process.join()
        with context.Pool(1) as pool:
            pool.apply(nothing)
            # A generator and a callback start the helper thread too.
            list(pool.imap(str, iter("a")))
            pool.apply_async(nothing, callback=str).wait()
            pool.close()
            pool.join()
    # All that is here stays, and collections need not look at it: there is one after each test.
    gc.collect()
    gc.freeze()


def helpers() -> frozenset[int]:
    """The processes that may outlive a test: the fork server's template, the resource tracker."""
    pids = {
        getattr(resource_tracker._resource_tracker, "_pid", None),
        getattr(phalanx.forkserver._forkserver, "_forkserver_pid", None),
    }
    return frozenset(pid for pid in pids if pid)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest, _warm: None, _time_limit: None) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor, or memory file behind."""
    before = Holdings()
    yield
    request.node.funcargs.clear()  # pytest keeps the fixtures' values longer than they are used
    if leaked := leaked_since(before, SETTLE, helpers()):
        kill_since(before, helpers())
        pytest.fail("left behind:\n  " + "\n  ".join(leaked), pytrace=False)
    reap_orphans(helpers())  # which others have left to us, and /proc grows by


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A file to which tasks append what they did, in whatever process they run."""
    return Log(tmp_path / "log")


@pytest.fixture
def pool(ctx: "phalanx.context.BaseContext") -> Iterator["phalanx.pool.Pool"]:
    """A pool of two workers, of each start method in turn; terminated and joined afterwards."""
    pool = ctx.Pool(2)
    yield pool
    pool.terminate()
    pool.join()


@pytest.fixture
def run(tmp_path: Path, method: str) -> Iterator[Callable[[str], Program]]:
    """Run a program; whatever becomes of it, nothing of it stays."""
    programs: list[Program] = []

    def start(body: str) -> Program:
        programs.append(Program(tmp_path, method, body))
        return programs[-1]

    yield start
    for program in programs:
        for pid in program.others():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        program.process.wait()
        program.process.stdout.close()  # type: ignore[union-attr]
