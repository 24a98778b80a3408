"""What a parent tells a child that is not its fork, and the child's first steps.

As CPython 3.13, ``Lib/multiprocessing/spawn.py``, whose preparation of ``__main__`` this uses.
"""

from __future__ import annotations

import io
import os
import sys
from multiprocessing import process as _process
from multiprocessing import reduction as _reduction
from multiprocessing import spawn as _spawn
from multiprocessing import util as _util
from multiprocessing.process import BaseProcess
from multiprocessing.spawn import get_executable, import_main_path, set_executable

from phalanx import _interrupts, _phalanx, context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = [
    "_main",
    "freeze_support",
    "get_command_line",
    "get_executable",
    "get_preparation_data",
    "import_main_path",
    "set_executable",
]

# For their private names.
process: Any = _process
reduction: Any = _reduction
util: Any = _util
_standard: Any = _spawn
# Kept: once `phalanx.install` has been called, the module shows ours under these names.
_their_prepare = _standard.prepare
_check_not_importing_main = _standard._check_not_importing_main

#: A child may not find this package by itself, run with ``-I``, ``-S`` or from a zip file.
_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


_TRACKER_CODE = r"from multiprocessing\.resource_tracker import main; ?main\((\d+)\)"


def _python_command(code: str) -> list[str]:
    """The command line that runs ``code`` as our children's first line."""
    find_us = f"import sys; sys.path.insert(0, {_PACKAGE_PARENT!r}); "
    options: list[str] = util._args_from_interpreter_flags()
    return [os.fsdecode(get_executable()), *options, "-c", find_us + code]


def get_command_line(**kwds: int | None) -> list[str]:
    """The command line of a spawned child."""
    words = [f"{name}={value!r}" for name, value in kwds.items()]
    if getattr(sys, "frozen", False):
        return [sys.executable, "--multiprocessing-fork", *words]
    code = f"from phalanx.spawn import spawn_main; spawn_main({', '.join(words)})"
    return [*_python_command(code), "--multiprocessing-fork"]


def _run(command: list[str], fds: list[int]) -> _phalanx.Child:
    return _phalanx.spawn(os.fsencode(command[0]), [os.fsencode(arg) for arg in command], None, fds)


def is_forking(argv: list[str]) -> bool:
    """Does the command line ask to be a child?"""
    return len(argv) > 1 and argv[1] == "--multiprocessing-fork"


def freeze_support() -> None:
    """In a frozen program that was started to be a child: be one, and exit."""
    if not is_forking(sys.argv):
        _be_tracker_if_told(sys.argv)
        return
    if sys.argv[2] == "template":
        from phalanx.forkserver import _frozen_main

        _frozen_main(sys.argv[3:])
        sys.exit()
    words = (arg.split("=") for arg in sys.argv[2:])
    kwds: dict[str, Any] = {k: None if value == "None" else int(value) for k, value in words}
    spawn_main(**kwds)


def _be_tracker_if_told(argv: list[str]) -> None:
    """Be the resource tracker, if that is what this frozen program was started for.

    It is started as ``PROGRAM FLAGS -c CODE``, which a frozen program takes for its own arguments:
    it would run as if it were the first, and start another.
    """
    flags: list[str] = util._args_from_interpreter_flags()
    before, after = argv[1 : len(flags) + 1], argv[len(flags) + 1 :]
    if before != flags or after[:1] != ["-c"]:
        return
    import re

    told = re.fullmatch(_TRACKER_CODE, " ".join(after[1:]))
    if told:
        from multiprocessing.resource_tracker import main

        main(int(told[1]))
        sys.exit()


def spawn_main(
    pipe_handle: int,
    parent_pid: int | None = None,
    tracker_fd: int | None = None,
    parent_sentinel: int | None = None,
) -> NoReturn:
    """Be the child whose orders are to be read from the descriptor ``pipe_handle``."""
    assert is_forking(sys.argv), "Not forking"
    _use_tracker(tracker_fd)
    sys.exit(_main(pipe_handle, parent_sentinel))


def _use_tracker(fd: int | None) -> None:
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = fd


def _main(fd: int, parent_sentinel: int | None) -> int:
    """Run what the orders in ``fd`` say; the exit code."""
    this = process.current_process()
    with open(fd, "rb") as from_parent:
        this._inheriting = True
        try:
            prepare(reduction.pickle.load(from_parent))
            process_obj = reduction.pickle.load(from_parent)
        finally:
            del this._inheriting
    _interrupts.let_in(process_obj)
    code: int = process_obj._bootstrap(parent_sentinel)
    return code


def _dump(popen: Any, data: dict[str, Any], process_obj: BaseProcess) -> bytes:
    """The orders for a child: its preparation, then its process object."""
    orders = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        reduction.dump(data, orders)
        reduction.dump(process_obj, orders)
    finally:
        context.set_spawning_popen(None)
    return orders.getvalue()


def get_preparation_data(name: str) -> dict[str, Any]:
    """What a child must know of its parent to unpickle its process object.

    Raises:
        RuntimeError: this process is itself still being prepared, so the main module has no
            ``if __name__ == "__main__"``.
    """
    _check_not_importing_main()
    # As the child calls what it imports; a program can be run by another, which was main before.
    sys.modules["__mp_main__"] = sys.modules["__main__"]
    original_dir = process.ORIGINAL_DIR
    data: dict[str, Any] = {
        "log_to_stderr": util._log_to_stderr,
        "authkey": process.current_process().authkey,
        "name": name,
        "sys_path": [original_dir if path == "" else path for path in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": original_dir,
        "dir": os.getcwd(),
        "start_method": context._default_context.get_start_method(),
    }
    if util._logger is not None:
        data["log_level"] = util._logger.getEffectiveLevel()
    if "phalanx._install" in sys.modules:
        data["install"] = True
    data.update(_main_module(original_dir))
    return data


def _main_module(original_dir: str | None) -> dict[str, str]:
    """Where the child finds the main module: by name, by path, or not at all."""
    main = sys.modules["__main__"]
    if main_name := getattr(getattr(main, "__spec__", None), "name", None):
        return {"init_main_from_name": main_name}
    path = getattr(main, "__file__", None)
    if path is None:
        return {}
    if not os.path.isabs(path) and original_dir is not None:
        path = os.path.join(original_dir, path)
    return {"init_main_from_path": os.path.normpath(path)}


def prepare(data: dict[str, Any]) -> None:
    """Make this process like its parent, as far as ``data`` tells."""
    if data.pop("install", False):
        from phalanx._install import install

        install()
    if (environ := data.pop("environ", None)) is not None:
        os.environ.clear()
        os.environ.update(environ)
    for number in reversed(data.pop("stdio", [])):
        _take_stdio(number)
    if (start_method := data.pop("start_method", None)) is not None:
        context._force_start_method(start_method)
    _their_prepare(data)


def _take_stdio(number: int) -> None:
    """Write to where the parent writes, and not to where it wrote when the template began."""
    from phalanx.forkserver import get_inherited_fds

    fd = get_inherited_fds().pop()
    os.dup2(fd, number)
    os.close(fd)
