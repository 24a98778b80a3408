"""A program run as Python runs it, after `phalanx.install`.

As ``pymain_run_python`` in CPython 3.13, ``Modules/main.c``. The program has its own ``__main__``,
``sys.argv`` and ``sys.path[0]``. An exception that ends it passes through this file and is reported
by the interpreter itself, so that ``sys.excepthook``, exit statuses and the death by SIGINT after a
KeyboardInterrupt are as ever; only the frames of this file are cut off its traceback before.
"""

from __future__ import annotations

import io
import os
import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any, NoReturn

__all__ = ["main"]

USAGE = (
    "usage: python -m phalanx [-h] [-V] (-c CODE | -m MODULE | SCRIPT | DIRECTORY | ZIP | -) ..."
)
HELP = f"""{USAGE}

Run a Python program, unchanged, with phalanx in the place of multiprocessing:
in the program, in the libraries it uses, and in all its child processes.

  -c CODE      run CODE
  -m MODULE    run a module, as `python -m MODULE` does
  SCRIPT       run a script, or a directory or zip file with a __main__.py
  -            run what is read from the standard input
  -h, --help   show this and exit
  -V, --version

What follows is the program's own. Options of Python itself go before `-m phalanx`:
    python -X dev -W error -m phalanx script.py
"""


def main() -> None:
    """Run what the command line says."""
    word, *rest = sys.argv[1:] or ["--nothing"]
    if word in ("-h", "--help"):
        print(HELP, end="")
    elif word in ("-V", "--version"):
        from importlib.metadata import version

        print("phalanx", version("phalanx"))
    elif word == "-":
        _run(_from_stdin, ["-", *rest])
    elif word[:2] in ("-c", "-m"):
        option, value = word[:2], word[2:]
        if not value:
            if not rest:
                _misused(f"argument expected for the {option} option")
            value, *rest = rest
        run = _command if option == "-c" else _module
        _run(lambda: run(value), [option, *rest])
    elif word == "--nothing":
        _misused("nothing to run")
    elif word.startswith("-"):
        _misused(f"unknown option {word} (Python's own options go before -m phalanx)")
    else:
        _run(lambda: _script(word), [word, *rest])


def _misused(why: str) -> NoReturn:
    print(f"{USAGE}\npython -m phalanx: {why}", file=sys.stderr)
    sys.exit(2)


def _run(program: Callable[[], None], argv: list[str]) -> None:
    from phalanx import install

    install()
    sys.argv[:] = argv
    # By both names: a child that imported the program says the latter (``multiprocessing``'s own
    # first import, which was before, has set it to ours).
    sys.modules["__main__"] = sys.modules["__mp_main__"] = _fresh_main()
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        _report_without_us(error)
        raise


def _fresh_main() -> ModuleType:
    import builtins
    from importlib.machinery import BuiltinImporter

    main = ModuleType("__main__")
    main.__loader__ = BuiltinImporter
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    return main


def _report_without_us(error: BaseException) -> None:
    """Have the interpreter, when it reports ``error``, leave out the frames down to here."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException], value: BaseException, _whole: TracebackType | None
    ) -> None:
        sys.excepthook = hook
        if value is error:
            value.__traceback__ = sys.last_traceback = trace
        hook(kind, value, value.__traceback__)

    sys.excepthook = excepthook


def _execute(code: CodeType) -> None:
    exec(code, vars(sys.modules["__main__"]))


def _set_first_path(entry: str) -> None:
    """Change what Python itself has put before all of ``sys.path``, if it has."""
    if not sys.flags.safe_path:
        sys.path[0] = entry


def _command(source: str) -> None:
    _set_first_path("")
    if sys.version_info >= (3, 14):
        import textwrap

        source = textwrap.dedent(source)
    code = compile(source + "\n", "<string>", "exec")
    try:
        _execute(code)
    except BaseException:
        _remember(code, source)
        raise


def _remember(code: CodeType, source: str) -> None:
    """Let tracebacks show lines of a program that is in no file, as Python 3.13 does."""
    import linecache

    register: Any = getattr(linecache, "_register_code", None)
    if register is not None:
        # By the file's name at first, by the code object itself since there can be several.
        by_code = hasattr(linecache, "_interactive_cache")
        register(code if by_code else code.co_filename, source, "<string>")


def _from_stdin() -> None:
    _set_first_path("")
    vars(sys.modules["__main__"]).update(__file__="<stdin>", __cached__=None)
    _execute(compile(sys.stdin.buffer.read(), "<stdin>", "exec"))


def _module(name: str) -> None:
    import runpy

    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _script(path: str) -> None:
    from pkgutil import get_importer

    if get_importer(path) is not None:  # a directory or a zip file
        import runpy

        path = os.path.join(os.getcwd(), path)
        if sys.flags.safe_path:
            sys.path.insert(0, path)
        else:
            sys.path[0] = path
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    _execute(_code_of(path))


def _code_of(path: str) -> CodeType:
    """Compile a script, or load one that is compiled, and tell ``__main__`` where it is from."""
    from importlib.machinery import SourceFileLoader, SourcelessFileLoader

    place = os.path.join(os.getcwd(), path)
    try:
        with io.open_code(place) as file:
            content = file.read()
    except OSError as error:
        why = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {place!r}: {why}", file=sys.stderr)
        sys.exit(2)
    loader = SourcelessFileLoader if path.endswith(".pyc") else SourceFileLoader
    names: dict[str, Any] = {"__file__": place, "__loader__": loader("__main__", place)}
    if sys.version_info < (3, 15):
        names["__cached__"] = None
    vars(sys.modules["__main__"]).update(names)
    if path.endswith(".pyc"):
        from pkgutil import read_code

        code: CodeType | None = read_code(io.BytesIO(content))
        if code is None:
            raise RuntimeError("Bad magic number in .pyc file")
        return code
    return compile(content, place, "exec")
