"""What tests run in workers, and how they look at processes; importable by any child."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import phalanx

DEADLINE = 20.0  # seconds, for whatever should take none: a busy machine is no failure


class Log:
    """Lines that several processes append to one file, whole (``O_APPEND``)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        Path(path).touch()

    def add(self, word: object) -> None:
        """Append one line."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, f"{word}\n".encode())
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        """The lines so far, in the order in which they were added."""
        return Path(self.path).read_text().splitlines()


def wait_until(condition: Callable[[], object], what: str, within: float = DEADLINE) -> float:
    """Return the seconds it took ``condition`` to become true; fail if it takes too long."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > within:
            raise AssertionError(f"waited {within} seconds for {what}")
        time.sleep(0.002)
    return time.monotonic() - started


def is_running(pid: int) -> bool:
    """Is there such a process, and not only its unread exit status?"""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


# What follows runs in workers.


def nothing() -> None:
    """A task, and a process's target."""


def square(x: int) -> int:
    return x * x


def is_loaded(module: str) -> bool:
    return module in sys.modules


def add(x: int, y: int = 0, *, z: int = 0) -> int:
    return x + y + z


def identity(x: object) -> object:
    return x


def pid_of_worker(_: object = None) -> int:
    return os.getpid()


def slow_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def note(log: Log, word: object) -> object:
    """Write down that this task ran."""
    log.add(word)
    return word


def note_and_wait(log: Log, word: object, for_line: str) -> object:
    """Write down that this task started, and end when another line is written down."""
    log.add(word)
    wait_until(lambda: for_line in log.lines(), f"{for_line!r} in the log")
    return word


def wait_for(log: Log, line: str) -> None:
    wait_until(lambda: line in log.lines(), f"{line!r} in the log")


def die(how: str) -> None:
    """End this process as no task should."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == "os._exit":
        os._exit(3)
    elif how == "segfault":
        ctypes.string_at(0)
    else:
        os.kill(os.getpid(), signal.Signals[how])
    time.sleep(DEADLINE)  # a signal to oneself may take a moment


def note_and_die(log: Log, how: str) -> None:
    """Die, after writing down when (``time.monotonic()`` is one clock for all processes)."""
    log.add(time.monotonic())
    die(how)


def die_at(victim: int, log: Log, x: int) -> int:
    """Write down ``x``; be killed if it is the victim."""
    log.add(x)
    if x == victim:
        die("SIGKILL")
    return x


def die_at_args(args: tuple[int, Log, int]) -> int:
    return die_at(*args)


def exit_by_sys(status: object) -> None:
    sys.exit(status)


class Recorded(BaseException):
    """A BaseException of a user's own."""


BASE_EXCEPTIONS = {
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "Recorded": Recorded,
}


def raise_base(name: str) -> None:
    raise BASE_EXCEPTIONS[name]("from the task")


def fail(message: str) -> None:
    raise ValueError(message)


def fail_on(bad: int, x: int) -> int:
    if x == bad:
        raise ValueError(f"no {x} please")
    return x


def fail_on_three(x: int) -> int:
    return fail_on(3, x)


class NotPicklable(Exception):
    """Carries what no pickle can."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class NotRebuildable(Exception):
    """Pickles, and cannot be made again from what it pickles to."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


class FailsToLoad:
    """Pickles, and raises when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return fail, ("cannot be loaded",)


def raise_not_picklable() -> None:
    raise NotPicklable("my lock")


def raise_not_rebuildable() -> None:
    raise NotRebuildable(7, "too many")


def return_not_picklable() -> object:
    return threading.Lock()


def return_fails_to_load() -> object:
    return FailsToLoad()


def initializer_that_fails(log: Log, how: str) -> None:
    log.add(os.getpid())
    if how == "raise":
        raise RuntimeError("no such model")
    die(how)


_kept: object = None


def keep(value: object) -> None:
    """An initializer."""
    global _kept  # noqa: PLW0603
    _kept = value


def kept() -> object:
    """What the initializer of this worker kept."""
    return _kept


def pool_inside(method: str, n: int) -> list[int]:
    """A pool in a process that is itself a child."""
    import phalanx  # noqa: PLC0415

    with phalanx.get_context(method).Pool(2) as pool:
        squares = pool.map(square, range(n))
        pool.close()
        pool.join()
    return squares


def send_pool_inside(connection, method: str) -> None:
    connection.send(pool_inside(method, 10))
    connection.close()


def squares_in_a_pool(method: str, count: int) -> list[int]:
    """A task that has a pool of its own."""
    with phalanx.get_context(method).Pool(2) as pool:
        return pool.map(square, range(count))


class Something:
    """An object that can be referred to weakly."""


def an_object() -> Something:
    return Something()


def child_of_a_task(method: str, daemon: bool | None = None) -> int | None:
    """A task that starts a process."""
    process = phalanx.get_context(method).Process(target=nothing, daemon=daemon)
    process.start()
    process.join()
    return process.exitcode


def manager_of_a_task(method: str) -> dict[str, int]:
    """A task that starts a manager, which is a process, too."""
    with phalanx.get_context(method).Manager() as manager:
        counts = manager.dict()
        counts["one"] = 1
        return dict(counts)


def fork_and_let_it(how: str) -> object:
    """Both the parent and the child come out of this task; the child's exit code."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how == "raise":
        raise RuntimeError("of the child's")
    return bytes(10_000_000) if how == "return much" else how


def have_a_child(method: str, log: Log) -> None:
    """A process with a child, both of which would run for long."""
    child = phalanx.get_context(method).Process(target=note_and_sleep, args=(log,), daemon=False)
    child.start()
    time.sleep(600)


def note_and_sleep(log: Log) -> None:
    """Write down who we are, and stay."""
    log.add(os.getpid())
    time.sleep(600)
