"""A throw-away environment in which CPython's own tests of multiprocessing test phalanx.

The tests that are installed with the interpreter are copied into a package ``phxsuite``, with every
reference to the module ``multiprocessing`` - imports, attribute paths, patch targets, scripts in
string literals - renamed. Nothing is aliased in ``sys.modules``: what a child imports is what
phalanx's own launching code makes it import, and the real module stays importable beside it, since
phalanx subclasses it. A virtual environment without pip makes the package and phalanx importable in
every child, also under ``-I`` and ``-E``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import test

TESTS = Path(test.__file__).parent
HERE = Path(__file__).parent
PARTS = {
    "processes": "only_type='processes'",
    "manager": "only_type='manager'",
    "threads": "only_type='threads'",
    "misc": "exclude_types=True",
}
# The tests of concurrent.futures that take a context;
FUTURES = ("as_completed", "deadlock", "init", "process_pool", "shutdown", "wait")
# Kept as it is: the text of a ResourceWarning.
KEPT = "running multiprocessing pool"
OURS = r"(?<![\w.])test\.(_test_multiprocessing|test_multiprocessing_\w+|test_concurrent_futures)"


def futures_tests() -> Path | None:
    """The folder of the tests of ``concurrent.futures``: this Python's or, failing that, another's.

    3.11 and 3.12 were long released without the folder. Of the interpreters that
    ``tools/pythons.sh`` finds the newest that has it lends its own; `older.py` makes them fit.
    """
    folders = [TESTS / "test_concurrent_futures"]
    listing = subprocess.run(
        [HERE.parent.parent / "tools" / "pythons.sh"], capture_output=True, text=True, check=False
    )
    for line in reversed(listing.stdout.splitlines()):
        minor, _, path = line.split("\t")
        library = Path(path).parent.parent / "lib" / f"python{minor}"
        folders.append(library / "test" / "test_concurrent_futures")
    return next((folder for folder in folders if (folder / "util.py").exists()), None)


def fit_for_older(source: str) -> str:
    """A borrowed test module, with what the ``test.support`` of an older Python lacks."""
    source = source.replace("from test.support import Py_GIL_DISABLED", "Py_GIL_DISABLED = False")
    return source.replace("from test import support\n", "from phxsuite.older import support\n")


def renamed(source: str, module: str, path: list[str]) -> str:
    """``source`` with every reference to the module ``multiprocessing`` made one to ``module``.

    A script that runs with ``-E -S`` finds neither the copies nor phalanx: it is given ``path``.
    """
    lines = []
    for old in source.splitlines(keepends=True):
        new = old if KEPT in old else re.sub(r"(?<![\w.])multiprocessing(?!\w)", module, old)
        new = re.sub(OURS, r"phxsuite.\1", new)
        if "'from phxsuite._test" in new:
            first = f"import sys; sys.path[:0] = {json.dumps(path)}; from phxsuite"
            new = new.replace("from phxsuite", first, 1)
        lines.append(new)
    return "".join(lines)


def with_our_executor(source: str) -> str:
    """A module of tests with phalanx's executor in the standard one's place."""
    source = source.replace("futures.ProcessPoolExecutor", "phalanx.futures.ProcessPoolExecutor")
    source = source.replace("from concurrent.futures import {", "from phalanx.futures import {")
    return f"import phalanx.futures\n{source}"


class Copies:
    """The environment; a context manager that removes it."""

    def __init__(self, module: str, origin: Path, executor: bool = False) -> None:
        self.module = module
        self.executor = executor
        self.root = Path(tempfile.mkdtemp(prefix="phxsuite."))
        venv = self.root / "venv"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = venv / "lib" / version / "site-packages"
        self.site.mkdir(parents=True)
        self.python = self._interpreter(venv, version)
        self.futures = futures_tests()
        self._make_importable(origin)
        self._copy_tests(path=[str(self.site), str(origin.parent.parent)])
        # Once, so that no child spends its time limit on it.
        compile_all = [self.python, "-m", "compileall", "-q", self.site]
        subprocess.run(compile_all, env=self.env(), check=True)

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def env(self, **more: str) -> dict[str, str]:
        """The environment variables of a test run: the caller's, without what steers Python."""
        steering = ("PYENV", "PYTHON", "VIRTUAL_ENV")
        return {k: v for k, v in os.environ.items() if not k.startswith(steering)} | more

    def _interpreter(self, venv: Path, version: str) -> Path:
        base = Path(os.path.realpath(sys._base_executable))
        (venv / "bin").mkdir()
        python = venv / "bin" / version
        python.symlink_to(base)
        (venv / "bin" / "python").symlink_to(version)
        (venv / "pyvenv.cfg").write_text(
            f"home = {base.parent}\ninclude-system-site-packages = false\n"
        )
        return python

    def _make_importable(self, origin: Path) -> None:
        """Let the environment import what this interpreter imports: phalanx, cloudpickle."""
        if self.module.partition(".")[0] == "multiprocessing":
            return
        folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        lines = [f"import site; site.addsitedir({folder!r})" for folder in dict.fromkeys(folders)]
        (self.site / "phxsuite_paths.pth").write_text(
            "\n".join([*lines, str(origin.parent.parent)]) + "\n"
        )

    def _copy_tests(self, path: list[str]) -> None:
        package = self.site / "phxsuite"
        package.mkdir()
        (package / "__init__.py").touch()
        for ours in ("listing.py", "worker.py", "older.py"):
            shutil.copy(HERE / ours, package)

        def copy(file: Path, to: Path, fit: Callable[[str], str] = str) -> None:
            source = fit(file.read_text(encoding="utf-8"))
            to.write_text(renamed(source, self.module, path), encoding="utf-8")

        for theirs in (
            "_test_multiprocessing.py",
            "test_multiprocessing_main_handling.py",
            "mp_fork_bomb.py",
            "mp_preload.py",
        ):
            copy(TESTS / theirs, package / theirs)
        # The drivers are five lines each, and some installations forget them.
        for method in ("fork", "spawn", "forkserver"):
            driver = package / f"test_multiprocessing_{method}"
            driver.mkdir()
            (driver / "__init__.py").touch()
            for part, types in PARTS.items():
                (driver / f"test_{part}.py").write_text(
                    "from phxsuite._test_multiprocessing import install_tests_in_module_dict\n"
                    f"install_tests_in_module_dict(globals(), {method!r}, {types})\n"
                )
        if self.futures is None:
            return
        borrowed = self.futures.parent != TESTS
        folder = package / self.futures.name
        folder.mkdir()
        (folder / "__init__.py").touch()

        def fit(source: str) -> str:
            source = fit_for_older(source) if borrowed else source
            return with_our_executor(source) if self.executor else source

        for name in ("executor", "util", *(f"test_{part}" for part in FUTURES)):
            file = f"{name}.py"
            copy(self.futures / file, folder / file, fit)
