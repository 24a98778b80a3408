"""The template: a process with one thread that has imported much and forks when asked.

As CPython 3.15, ``Lib/multiprocessing/forkserver.py``, with ``__main__`` really preloaded. The
conversation, the watching and the reaping are the engine's; here are the start of a template, and
in it the imports and the fork.

``"__main__"`` among the modules to preload stands for the program: the main module, and later also
the modules where the targets of its processes live. A program that is started as
``if __name__ == "__main__": from app import main; main()`` has nothing else in its main module.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
from multiprocessing import process
from multiprocessing import util as _util

from phalanx import _interrupts, _log, _phalanx, _tracker, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = ["ensure_running", "get_inherited_fds", "set_forkserver_preload"]

util: Any = _util  # for its private names

_STOP_TIMEOUT = 10.0  # seconds
_HINT_SIZE = 4000  # bytes


class ForkServer:
    """The template of this process, if it has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._template: _phalanx.Template | None = None
        self._environ: dict[str, str] = {}
        #: Modules that later children will need, and those that a template has been told of.
        self._noted: set[str] = set()
        self._hinted: set[str] = set()
        self._inherited_fds: list[int] = []
        self._preload_modules: list[str] = ["__main__"]
        self._on_error = "ignore"

    @property
    def _forkserver_pid(self) -> int | None:
        return self._template.pid if self._template is not None else None

    def set_forkserver_preload(self, modules_names: list[str], *, on_error: str = "ignore") -> None:
        """Set the modules that the next template will import."""
        if not all(type(name) is str for name in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in {"ignore", "warn", "fail"}:
            raise ValueError(f"on_error must be 'ignore', 'warn' or 'fail', not {on_error!r}")
        self._preload_modules = modules_names
        self._on_error = on_error

    def get_inherited_fds(self) -> list[int]:
        """The descriptors that this process, a template's child, was given by its parent."""
        return self._inherited_fds

    def ensure_running(self) -> None:
        """Start the template, unless it runs."""
        with self._lock:
            self._running()

    def changes(self) -> dict[str, Any]:
        """What has changed in this process since the template copied it."""
        environ = os.environ.copy()
        return {"environ": environ} if environ != self._environ else {}

    def launch(
        self, payload: bytes, fds: Sequence[int], modules: Iterable[str] = ()
    ) -> _phalanx.Child:
        """Have a child forked, which is going to need ``modules``.

        Raises:
            OSError: there is no process or descriptor left for it.
            BrokenPipeError: the template died, and so did the next.
        """
        with self._lock:
            template = self._running()
            hint = self._hint(modules)
        fds = [_tracker.fd(), _phalanx.self_pidfd(), *fds]
        child = None
        try:
            child = self._ask(template, payload, fds, hint)
        finally:
            try:
                _tracker.start()
            except BaseException:
                if child is not None:  # the caller is told that there is none
                    child.send_signal(signal.SIGKILL)
                    child.wait()
                raise
        return child

    def _ask(
        self, template: _phalanx.Template, payload: bytes, fds: Sequence[int], hint: bytes
    ) -> _phalanx.Child:
        child = template.launch(payload, fds, hint)
        if child is None:
            # It was killed or interrupted, or one of the modules did not agree with it.
            with self._lock:
                template = self._running(unlike=template)
            child = template.launch(payload, fds)
        if child is None:
            raise BrokenPipeError(errno.EPIPE, "the template process has died, and so did the next")
        return child

    def note(self, module: str) -> None:
        """Children to come will need ``module``: the next launch tells the template."""
        self._noted.add(module)

    def _running(self, unlike: _phalanx.Template | None = None) -> _phalanx.Template:
        template = self._template
        if template is None or template is unlike or not template.is_alive():
            self._environ = os.environ.copy()
            command = [os.fsencode(arg) for arg in self._command()]
            self._template = _phalanx.Template.start(command[0], command)
            if template is not None:
                _log.warning("the template process %d has died; another is started", template.pid)
            _log.debug("the template process %d was started", self._template.pid)
            return self._template
        return template

    def _hint(self, modules: Iterable[str]) -> bytes:
        """Of ``modules``, those that no template has been told of."""
        news = self._noted.union(modules) - self._hinted - {"__main__", "__mp_main__", ""}
        if not news or "__main__" not in self._preload_modules:
            return b""
        self._hinted |= news
        return "\n".join(news).encode()[:_HINT_SIZE]

    def _command(self) -> list[str]:
        data = spawn.get_preparation_data("ignore")
        wanted = ["sys_path", "sys_argv", "install", "init_main_from_name", "init_main_from_path"]
        owner = {key: data[key] for key in wanted if key in data}
        settings = (self._preload_modules, self._on_error, owner)
        if getattr(sys, "frozen", False):
            return [sys.executable, "--multiprocessing-fork", "template", repr(settings)]
        return spawn._python_command(f"from phalanx.forkserver import main; main(*{settings!r})")

    def _stop(self) -> None:
        """End the template; for tests."""
        with self._lock:
            if self._template is not None:
                self._template.stop(_STOP_TIMEOUT)
                self._template = None

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._template = None


def _open_stdio() -> list[int]:
    """The numbers of stdout and stderr, as far as they are open."""

    def is_open(fd: int) -> bool:
        try:
            os.fstat(fd)
        except OSError:
            return False
        return True

    return [fd for fd in (1, 2) if is_open(fd)]


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
set_forkserver_preload = _forkserver.set_forkserver_preload
os.register_at_fork(after_in_child=_forkserver._after_fork)


def _frozen_main(words: list[str]) -> None:
    import ast

    main(*ast.literal_eval(words[0]))


def main(preload: list[str], on_error: str, owner: dict[str, Any]) -> None:
    """Be a template for the owner at the other end of the last argument's descriptor.

    ``owner`` has the ``sys_path`` and ``sys_argv`` of that process, and where its main module is.
    """
    server = _phalanx.TemplateServer(int(sys.argv[-1]))
    try:
        _prepare(preload, on_error, owner)
    except KeyboardInterrupt:
        sys.exit(1)  # our owner has been interrupted too, and says so
    util._close_stdin()
    util._flush_std_streams()
    # What is here now will be in every child: let its collections not write to these pages.
    gc.freeze()
    while (request := server.next()) is not None:
        if request.hint:
            _import_hinted(request.hint.decode().split("\n"))
        try:
            pid = os.fork()
        except OSError as error:
            server.refused(error.errno or 0)
        else:
            if pid == 0:
                _be_child(server, request)
            server.launched(pid)
        request.close()


def _prepare(preload: list[str], on_error: str, owner: dict[str, Any]) -> None:
    """Become what children are to be copies of. Of all this only the imports can be interrupted."""
    set_forkserver_preload(preload, on_error=on_error)
    sys.path[:] = owner.pop("sys_path")
    sys.argv[:] = owner.pop("sys_argv")
    _install_if_told(owner)
    for module in preload:
        _interrupts.let_in()
        try:
            if module == "__main__":
                _import_main(owner)
            else:
                __import__(module)
        except (Exception, SystemExit) as error:
            if on_error == "fail":
                raise
            if on_error == "warn":
                import warnings

                warnings.warn(f"failed to preload module {module!r}: {error}", stacklevel=3)
        finally:
            # A ^C at the terminal is for the owner and its children.
            _interrupts.hold()


def _install_if_told(owner: dict[str, Any]) -> None:
    if owner.pop("install", False):
        from phalanx._install import install

        install()


def _import_hinted(modules: list[str]) -> None:
    """Import what the next child would import, so that those after it need not."""
    this: Any = process.current_process()
    for module in modules:
        if module in sys.modules:
            continue
        this._inheriting = True
        try:
            __import__(module)
        except (Exception, SystemExit):
            pass  # the child is going to say why
        finally:
            del this._inheriting
    util._flush_std_streams()
    if threading.active_count() > 1:
        sys.exit()  # a fork would lack these threads: leave it to the next template, without hints
    gc.freeze()


def _import_main(owner: dict[str, Any]) -> None:
    this: Any = process.current_process()
    this._inheriting = True
    try:
        spawn.prepare(owner)
    finally:
        del this._inheriting


def _be_child(server: _phalanx.TemplateServer, request: _phalanx.Request) -> None:
    import atexit

    code = 1
    try:
        server.close()
        if not request.is_known():
            os._exit(1)  # the owner does not have this child: the template died, or it gave up
        fd, fds = request.take()
        atexit._clear()
        atexit.register(util._exit_function)
        tracker_fd, parent_sentinel, *_forkserver._inherited_fds = fds
        spawn._use_tracker(tracker_fd)
        code = spawn._main(fd, parent_sentinel)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        atexit._run_exitfuncs()
        os._exit(code)
