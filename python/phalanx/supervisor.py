"""Named processes that are kept running, by the rules of Erlang/OTP's ``supervisor``.

The rules themselves, who is stopped and started in which order and when it is too much, are the
engine's; here is how a child is started, and what it does first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass, field
from multiprocessing import util
from typing import NamedTuple

from . import _carry, _log, _phalanx, _shortages
from ._descriptors import Passed
from ._worker import _let_the_parent_decide
from .context import _own_context
from .exceptions import ChildDied, SupervisorFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.process import BaseProcess
    from types import TracebackType
    from typing import Any, Literal, Self

__all__ = ["ChildDied", "ChildInfo", "ChildSpec", "Supervisor", "SupervisorFailed"]

TRACE = 1 << 16  # bytes of a traceback that are kept, its end


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """What a child of a `Supervisor` does, and what becomes of it when it ends.

    Args:
        name: the child's name, which no sibling has; also its process's.
        target: what it calls, as ``target(*args, **kwargs)``.
        args: see ``target``.
        kwargs: see ``target``.
        restart: when it is started again after it has ended unasked: ``"permanent"``, always;
            ``"transient"``, unless with exit code 0; ``"temporary"``, never, not with its siblings
            either, and it is forgotten.
        shutdown: seconds that it has to end after SIGTERM, before SIGKILL; ``None`` is for ever, 0
            is SIGKILL at once.
        kill_tree: whether what it has started ends with it, however it ends; processes that have
            left its process group (``start_new_session``) excepted.
    """

    name: str
    target: Callable[..., object]
    args: Iterable[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    shutdown: float | None = 5.0
    kill_tree: bool = False


class ChildInfo(NamedTuple):
    """How a child of a `Supervisor` is, at the instant of the call."""

    #: Its name.
    name: str
    #: ``"running"``, ``"starting"``, ``"stopping"`` or ``"down"``, which it stays.
    status: str
    #: Its process id, while it runs.
    pid: int | None
    #: How often it was started after the first time.
    restarts: int
    #: How its last process ended, if one has: as ``Process.exitcode``.
    exitcode: int | None


class Supervisor:
    """Keeps processes running.

    ::

        def tick(seconds):
            while True:
                time.sleep(seconds)

        if __name__ == "__main__":
            children = [
                phalanx.ChildSpec(name="clock", target=tick, args=(1,)),
                phalanx.ChildSpec(name="display", target=tick, args=(2,)),
            ]
            with phalanx.Supervisor(children, strategy="rest_for_one") as supervisor:
                supervisor.join()

    Args:
        children: started in this order by :meth:`start`, or by ``with``.
        strategy: who is restarted with a child that has died: ``"one_for_one"``, that one alone;
            ``"one_for_all"``, all; ``"rest_for_one"``, those that were added after it. They are
            stopped first, the last one first, and then started in order.
        intensity: so many restarts are allowed...
        period: ... within so many seconds. After one more all children are stopped, and
            :meth:`join`, :meth:`stop` and the end of ``with`` raise `SupervisorFailed`.
        name: the supervisor's name, in messages.
        context: how children are started; by default as ``phalanx.get_context()`` says.

    Raises:
        ValueError: if there is no such strategy, or ``period`` is negative.
        OSError: if descriptors are short.

    A child is a process that may have children itself. It ignores a Ctrl-C in the terminal, which
    is its supervisor's to act on, unless its target says otherwise. It does not outlive the process
    that supervises it, however that ends: the kernel sees to it. What it raised is printed there,
    as by any process, and told in `SupervisorFailed`.

    Methods may be called from any thread, but not in a forked child: there they raise
    ``ValueError``.

    As ``supervisor`` in Erlang/OTP 27, without ``significant`` children.
    """

    def __init__(
        self,
        children: Iterable[ChildSpec] = (),
        *,
        strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one",
        intensity: int = 1,
        period: float = 5.0,
        name: str = "supervisor",
        context: Any | None = None,
    ) -> None:
        self.name = name
        self._first = tuple(children)
        engine = _phalanx.Supervisor(name, strategy, intensity, period)
        self._house = _House(engine, _own_context(context))
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is not None and thread.is_alive() and self._owner == os.getpid():
            warnings.warn(
                f"supervisor {self.name!r} was not stopped",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("a supervisor cannot be passed between processes or pickled")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except SupervisorFailed:
            if exc_type is None:
                raise

    def start(self) -> Self:
        """Start the children, one after the other.

        Raises:
            ValueError: if it has been started.
            BaseException: what :meth:`start_child` raises for the first that cannot be started;
                those before it are stopped then.
        """
        if self._thread is not None:
            raise ValueError(f"supervisor {self.name!r} has been started")
        self._thread = threading.Thread(
            target=_serve, args=(self._house,), name="phalanx-supervisor", daemon=True
        )
        self._thread.start()
        self._finalizer = util.Finalize(
            self, _finish, args=(self._house.engine, self._thread), exitpriority=15
        )
        try:
            for child in self._first:
                self.start_child(child)
        except BaseException:
            self._house.engine.stop()
            self._house.engine.wait_idle()
            self._thread.join()
            raise
        return self

    def start_child(self, child: ChildSpec) -> None:
        """Add a child after those that are there, and start it.

        Raises:
            ValueError: if there is a child of that name, or the supervisor is not running.
            BaseException: why the process could not be started; the child is forgotten then.
        """
        self._check_started()
        with self._house.lock:  # the supervisor's thread waits until the child is known
            number = self._house.engine.add(
                child.name, child.restart, child.shutdown, child.kill_tree
            )
            self._house.specs[number] = child
        self._wait_started(number)

    def terminate_child(self, name: str, timeout: float | None = None) -> bool:
        """Stop a child, and wait for its end; whether that came within ``timeout`` seconds.

        It stays known, unless it is temporary, and can be restarted; it is restarted with its
        siblings, too, if the strategy says so.

        Raises:
            ValueError: if there is no such child.
        """
        return self._house.engine.terminate(name, timeout)

    def restart_child(self, name: str) -> None:
        """Start a child that does not run.

        Raises:
            ValueError: if there is no such child, if it runs, or the supervisor is not running.
            BaseException: why the process could not be started.
        """
        self._wait_started(self._house.engine.restart(name))

    def delete_child(self, name: str) -> None:
        """Forget a child that does not run.

        Raises:
            ValueError: if there is no such child, or it runs.
        """
        self._house.engine.delete(name)

    def children(self) -> list[ChildInfo]:
        """All children, in the order in which they were added."""
        return [ChildInfo(*child) for child in self._house.engine.children()]

    def count(self) -> int:
        """How many children run."""
        return sum(child.pid is not None for child in self.children())

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no child runs and none is about to; whether within ``timeout`` seconds.

        So it is when each has ended for good, when the supervisor was stopped, or has failed.

        Raises:
            SupervisorFailed: with all deaths, if it has.
        """
        self._check_started()
        return self._house.engine.wait_idle(timeout)

    def stop(self) -> None:
        """Stop all children, the last one first, and wait for their ends.

        Raises:
            SupervisorFailed: with all deaths, if there were too many before.
        """
        self._house.engine.stop()
        if self._thread is not None:
            try:
                self._house.engine.wait_idle()
            finally:
                self._thread.join()

    def _check_started(self) -> None:
        if self._thread is None:
            raise ValueError(
                f"supervisor {self.name!r} was not started: use it in a `with` block, or start() it"
            )

    def _wait_started(self, number: int) -> None:
        try:
            self._house.engine.wait_started(number)
        except Exception:
            trouble = self._house.troubles.pop(number, None)
            if trouble is None:
                raise
            raise trouble from None


@dataclass(eq=False)
class _House:
    """What the supervisor's thread works with; it does not know the `Supervisor` itself."""

    engine: _phalanx.Supervisor
    context: Any
    lock: Any = field(default_factory=threading.Lock)
    specs: dict[int, ChildSpec] = field(default_factory=dict)
    #: By child: its process, and where it reports why it ends.
    processes: dict[int, tuple[BaseProcess, int]] = field(default_factory=dict)
    #: By child: why it could not be started the last time.
    troubles: dict[int, BaseException] = field(default_factory=dict)

    def start(self, order: _phalanx.StartOrder) -> None:
        """Start a child's process."""
        with self.lock:
            spec = self.specs[order.child]
        report = -1
        try:
            with _shortages.told("make room for a child's report", "memfd_create(2)"):
                report = os.memfd_create("phalanx-report")
            arguments = (_Post(order, report), _carry.portable(spec.target), spec.args, spec.kwargs)
            process = self.context.Process(target=_live, args=arguments, name=spec.name)
            process.daemon, process._is_tied = False, True
            process.start()
        except BaseException as error:
            if report >= 0:
                os.close(report)
            self.troubles[order.child] = error
            _log.warning("%s could not be started: %s", spec.name, repr(error))
            self.engine.refused(order.child, f"{type(error).__name__}: {error}")
            return
        self.processes[order.child] = process, report
        _log.debug("%s (pid %s) was started", spec.name, process.pid)
        try:
            self.engine.started(order, process._popen._child)
        except BaseException as error:
            self.troubles[order.child] = error
            self.bury(order.child)

    def bury(self, number: int) -> None:
        """Take note of the end of a child's process."""
        process, report = self.processes.pop(number)
        process.join()
        tell = _log.warning if process.exitcode else _log.debug
        tell("%s (pid %s) %s", process.name, process.pid, _log.exit_in_words(process.exitcode))
        process.close()
        trace = os.pread(report, TRACE, 0).decode("utf-8", "replace")
        os.close(report)
        self.engine.buried(number, trace)

    def forget(self, number: int) -> None:
        """Forget a child."""
        with self.lock:
            self.specs.pop(number, None)


class _Post:
    """What a child is started with: its lifeline, and where it reports why it ends."""

    def __init__(self, order: _phalanx.StartOrder, report: int) -> None:
        self._passed = Passed(order.lifeline, report)
        self._tree = order.tree

    def take(self) -> int:
        """In the child: end with the supervisor from now on; where to report."""
        lifeline, report = self._passed.take()
        _phalanx.keep_to(lifeline, self._tree)
        os.close(lifeline)
        return report


def _live(
    post: _Post, target: Callable[..., object], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> None:
    """What a child does."""
    report = post.take()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _let_the_parent_decide)
    try:
        target(*args, **kwargs)
    except SystemExit:
        raise
    except BaseException as error:
        import traceback

        error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        trace = "".join(traceback.format_exception(error)).encode("utf-8", "replace")
        os.pwrite(report, trace[-TRACE:], 0)
        raise


def _serve(house: _House) -> None:
    """Do what the engine asks of Python, until the supervisor has ended."""
    calls: dict[str, Callable[[Any], None]]
    calls = {"start": house.start, "bury": house.bury, "forget": house.forget}
    while (errand := house.engine.errand()) is not None:
        what, about = errand
        try:
            calls[what](about)
        except BaseException:
            kind, error, trace = sys.exc_info()
            thread = threading.current_thread()
            threading.excepthook(threading.ExceptHookArgs((kind, error, trace, thread)))
        del errand, about
    if (why := house.engine.failed()) is not None:
        _log.error("%s", str(why))


def _finish(engine: _phalanx.Supervisor, thread: threading.Thread) -> None:
    """Stop a supervisor that nobody has stopped."""
    try:
        engine.stop()
    except ValueError:
        return  # of the process that this one was forked from
    thread.join()
