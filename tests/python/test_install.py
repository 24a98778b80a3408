"""`phalanx.install` and ``python -m phalanx``: programs of ``multiprocessing`` run on phalanx.

Each test is a program in a file of its own, run by a Python of its own.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import phalanx
import pytest

METHODS = ("fork", "spawn", "forkserver")

PACKAGE = str(Path(phalanx.__file__).parents[1])


def python(*args: object, cwd: Path, **more) -> subprocess.CompletedProcess[str]:
    """Run another Python, in ``cwd``, with this one's phalanx."""
    env = dict(os.environ, PYTHONPATH=PACKAGE)
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=60, env=env, check=False, **more
    )


def write(folder: Path, text: str, name: str = "program.py") -> str:
    """Make a file of a program, and say its name."""
    (folder / name).write_text(textwrap.dedent(text))
    return name


def output(folder: Path, *args: object) -> list[str]:
    """The lines that a Python prints that must succeed and say nothing else."""
    done = python(*args, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout.splitlines()


def both(folder: Path, *args: object, **more) -> subprocess.CompletedProcess[str]:
    """Run Python plainly and as ``-m phalanx``: nobody can tell the difference."""
    plain = python(*args, cwd=folder, **more)
    ours = python("-m", "phalanx", *args, cwd=folder, **more)
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr
    assert ours.returncode == plain.returncode
    return ours


# Everything that `whose` is given must be phalanx's.
WHOSE = """
    def whose(*things):
        for thing in things:
            name = getattr(thing, "__func__", thing)
            name = name if isinstance(name, type) or callable(name) else type(name)
            print(name.__module__.partition(".")[0])
"""

WAYS = {
    "the package": """
        import multiprocessing
        whose(multiprocessing.Pool, multiprocessing.Process, multiprocessing.get_context())
    """,
    "names": """
        from multiprocessing import Pool, Process, get_context
        whose(Pool, Process, get_context)
    """,
    "everything": """
        from multiprocessing import *
        whose(Pool, Process, get_context)
    """,
    "a submodule": """
        import multiprocessing.pool as p
        whose(p.Pool, vars(p)["Pool"])
    """,
    "a submodule of the package": """
        import multiprocessing.pool, multiprocessing.context
        whose(multiprocessing.pool.Pool, multiprocessing.context._default_context)
    """,
    "names of a submodule": """
        from multiprocessing.pool import Pool
        from multiprocessing.context import Process, SpawnContext
        whose(Pool, Process, SpawnContext)
    """,
    "inside a function": """
        def function():
            from multiprocessing import context, pool
            whose(pool.Pool, context.ForkContext)
        function()
    """,
    "by name": """
        import importlib, sys
        whose(importlib.import_module("multiprocessing.pool").Pool)
        whose(sys.modules["multiprocessing.pool"].Pool)
    """,
    "through a library": """
        import concurrent.futures.process
        whose(concurrent.futures.process.mp.get_context())
    """,
}


@pytest.mark.parametrize("when", ["before", "after", "-m phalanx"])
@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_imported_it_is_phalanx(tmp_path, way, when):
    body = textwrap.dedent(WHOSE) + textwrap.dedent(WAYS[way])
    install = "import phalanx; phalanx.install()\n"
    if when == "before":
        body = "import multiprocessing.pool, multiprocessing.queues\n" + install + body
    elif when == "after":
        body = install + body
    write(tmp_path, body)
    args = ["-m", "phalanx", "program.py"] if when == "-m phalanx" else ["program.py"]
    said = output(tmp_path, *args)
    assert said
    assert set(said) == {"phalanx"}


def test_every_name_shown_is_the_same_as_ours(tmp_path):
    write(
        tmp_path,
        """
        import importlib, pkgutil, types
        import multiprocessing, phalanx
        phalanx.install()
        for info in pkgutil.iter_modules(multiprocessing.__path__):
            if "win32" in info.name:
                continue
            theirs = importlib.import_module(f"multiprocessing.{info.name}")
            ours = importlib.import_module(f"phalanx.{info.name}")
            for name in getattr(ours, "__all__", ()):
                if name != "BaseContext":
                    assert getattr(theirs, name) is getattr(ours, name), (info.name, name)
                    exec(f"from multiprocessing.{info.name} import {name}", {})
        for name in phalanx.__all__:
            assert getattr(multiprocessing, name) == getattr(phalanx, name), name
        """,
    )
    assert output(tmp_path, "program.py") == []


def test_what_was_copied_before_is_ours_all_the_same(tmp_path):
    write(
        tmp_path,
        """
        from multiprocessing import Pool, Process, get_context, get_start_method, set_start_method
        from multiprocessing.context import BaseContext
        set_start_method("spawn")
        context = get_context("forkserver")
        import phalanx
        phalanx.install()
        import multiprocessing
        assert multiprocessing.get_start_method() == phalanx.get_start_method() == "spawn"
        set_start_method("fork", force=True)
        assert multiprocessing.get_start_method() == phalanx.get_start_method() == "fork"
        assert isinstance(context, phalanx.context.ForkServerContext)
        assert isinstance(get_context(), phalanx.context.ForkContext)
        assert isinstance(get_context(), BaseContext)
        assert isinstance(context, multiprocessing.context.BaseContext)
        process = Process(target=print, args=("in a child",))
        process.start()
        assert isinstance(process._popen, phalanx.popen_fork.Popen)
        process.join()
        with Pool(1) as pool:
            assert isinstance(pool, phalanx.pool.Pool)
            assert pool.apply(abs, (-1,)) == 1
        """,
    )
    assert output(tmp_path, "program.py") == ["in a child"]


@pytest.mark.parametrize("method", METHODS)
def test_what_was_made_before_can_be_sent(tmp_path, method):
    write(
        tmp_path,
        f"""
        import multiprocessing
        import multiprocessing.synchronize
        context = multiprocessing.get_context({method!r})
        lock, event, queue = context.Lock(), context.Event(), context.SimpleQueue()
        receiver, sender = context.Pipe()

        import phalanx
        phalanx.install()

        def child(lock, event, queue, sender):
            with lock:
                queue.put("queue")
                sender.send("pipe")
            event.set()

        if __name__ == "__main__":
            process = context.Process(target=child, args=(lock, event, queue, sender))
            process.start()
            assert event.wait(20)
            print(queue.get(), receiver.recv())
            process.join()
            assert process.exitcode == 0
        """,
    )
    assert output(tmp_path, "program.py") == ["queue pipe"]


@pytest.mark.parametrize("method", METHODS)
def test_children_and_theirs_have_it_too(tmp_path, method):
    write(
        tmp_path,
        f"""
        import multiprocessing as mp
        import sys
        from concurrent.futures import ProcessPoolExecutor

        def me(_=None):
            import multiprocessing.pool
            return multiprocessing.pool.Pool.__module__, mp.Process.__module__

        def child(depth, queue):
            queue.put(me())
            if depth:
                process = mp.Process(target=child, args=(depth - 1, queue))
                process.start()
                process.join()

        if __name__ == "__main__":
            mp.set_start_method({method!r})
            queue = mp.SimpleQueue()
            process = mp.Process(target=child, args=(1, queue))
            process.start()
            process.join()
            found = [queue.get(), queue.get()]
            with mp.Pool(1) as pool:
                found.append(pool.apply(me))
            with ProcessPoolExecutor(1) as executor:
                found.append(executor.submit(me).result())
                assert executor._mp_context is mp.get_context(), executor._mp_context
            assert len(found) == 4
            assert set(found) == {{("phalanx.pool", "phalanx.context")}}, found
            assert "phalanx" in type(process._popen).__module__
        """,
    )
    assert output(tmp_path, "-m", "phalanx", "program.py") == []


def test_a_template_preloads_for_an_installed_program(tmp_path):
    write(
        tmp_path, "import multiprocessing\nwhose = multiprocessing.Process.__module__", "early.py"
    )
    write(
        tmp_path,
        """
        import multiprocessing

        def child():
            import early
            print(early.whose)

        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["early"])
            process = context.Process(target=child)
            process.start()
            process.join()
        """,
    )
    assert output(tmp_path, "-m", "phalanx", "program.py") == ["phalanx.context"]


def test_patches_and_subclasses_reach_what_runs(tmp_path):
    write(
        tmp_path,
        """
        import multiprocessing, multiprocessing.pool
        from unittest import mock
        import phalanx
        phalanx.install()
        real = phalanx.pool.Pool
        with mock.patch("multiprocessing.pool.Pool", "another"):
            assert phalanx.pool.Pool == multiprocessing.pool.Pool == "another"
        assert phalanx.pool.Pool is multiprocessing.pool.Pool is real
        multiprocessing.pool.novel = 1
        assert multiprocessing.pool.novel == 1
        assert "novel" in dir(multiprocessing.pool)
        del multiprocessing.pool.novel
        with multiprocessing.pool.ThreadPool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        phalanx.install()  # again, which does nothing
        """,
    )
    assert output(tmp_path, "program.py") == []


# A program under `python -m phalanx` is what it is under `python`.

INTROSPECTION = """
    import os, sys
    print(__name__, __doc__, __package__, __spec__ and __spec__.name, sorted(vars()))
    print(__spec__ and __spec__.origin, globals().get("__file__"), globals().get("__cached__"))
    print(type(__loader__), __builtins__)
    print(sys.argv, sys.path[0])
    main = sys.modules["__main__"]
    print(main is __import__("__main__"), vars(main) is globals())
"""


def test_a_script_is_main_itself(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", INTROSPECTION)
    os.symlink("sub/program.py", tmp_path / "link.py")
    for script in ("sub/program.py", "./sub/../sub/program.py", "link.py"):
        assert "['" + script + "', '-x', 'y'" in both(tmp_path, script, "-x", "y").stdout


def test_a_module_is_main_itself(tmp_path):
    (tmp_path / "package").mkdir()
    write(tmp_path / "package", INTROSPECTION, "__main__.py")
    write(tmp_path, INTROSPECTION)
    assert "program" in both(tmp_path, "-m", "program", "-m", "y").stdout
    assert "program" in both(tmp_path, "-mprogram").stdout
    assert "package" in both(tmp_path, "-m", "package").stdout


def test_code_is_main_itself(tmp_path):
    code = textwrap.dedent(INTROSPECTION)
    assert "'-c'" in both(tmp_path, "-c", code, "x").stdout
    assert "'-'" in both(tmp_path, "-", "x", input=code).stdout


def test_a_folder_or_zip_file_is_main_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", INTROSPECTION, "__main__.py")
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.write(tmp_path / "folder" / "__main__.py", "__main__.py")
    assert "folder" in both(tmp_path, "folder", "x").stdout
    assert "file.zip" in both(tmp_path, "file.zip", "x").stdout


@pytest.mark.parametrize(
    "end",
    [
        "raise ValueError('on purpose')",
        "def f():\n    1 / 0\nf()",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('a message')",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import sys; sys.excepthook = lambda *e: print(e[:2], not e[2].tb_next); raise OSError(1)",
        "import atexit; atexit.register(print, 'atexit'); raise OSError(1) from KeyError(2)",
        "import sys, atexit; atexit.register(lambda: print(sys.last_value)); raise OSError(1)",
        "this is a syntax error",
        "import nowhere",
        "class E(BaseException): pass\nraise E",
        "import os; os._exit(7)",
    ],
)
def test_it_ends_as_under_plain_python(tmp_path, end):
    write(tmp_path, end)
    script = both(tmp_path, "program.py")
    assert both(tmp_path, "-c", end).returncode == script.returncode
    assert both(tmp_path, "-m", "program").returncode == script.returncode
    if "SIGINT" in end or "KeyboardInterrupt" in end:
        assert script.returncode == -signal.SIGINT


def test_what_is_not_there_is_said_as_by_plain_python(tmp_path):
    assert both(tmp_path, "nothing.py").returncode == 2
    assert both(tmp_path, "-m", "nothing").returncode == 1
    (tmp_path / "folder").mkdir()
    assert both(tmp_path, "folder").returncode == 1


def test_a_death_in_a_child_is_reported_as_by_plain_python(tmp_path):
    write(
        tmp_path,
        """
        import multiprocessing
        def child():
            raise ValueError("on purpose")
        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
            raise SystemExit(process.exitcode)
        """,
    )
    plain = python("program.py", cwd=tmp_path)
    ours = python("-m", "phalanx", "program.py", cwd=tmp_path)
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert re.sub(r"line \d+", "", ours.stderr) == re.sub(r"line \d+", "", plain.stderr)


def test_usage(tmp_path):
    helped = python("-m", "phalanx", "--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert "-m MODULE" in helped.stdout
    version = python("-m", "phalanx", "--version", cwd=tmp_path)
    assert re.fullmatch(r"phalanx \d+\.\d+\.\d+\S*\n", version.stdout)
    for words, why in (
        ([], "nothing to run"),
        (["-c"], "argument expected for the -c option"),
        (["-m"], "argument expected for the -m option"),
        (["--fast", "x.py"], "unknown option --fast"),
    ):
        wrong = python("-m", "phalanx", *words, cwd=tmp_path)
        assert wrong.returncode == 2
        assert wrong.stdout == ""
        assert wrong.stderr.startswith("usage: python -m phalanx")
        assert why in wrong.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_executors_are_ours_and_can_be_derived_from(tmp_path, when):
    install = "import phalanx; phalanx.install()"
    program = f"""
        {install if when == "after" else ""}
        import concurrent.futures
        import os
        {"concurrent.futures.ProcessPoolExecutor; " + install if when == "before" else ""}
        from concurrent.futures.process import ProcessPoolExecutor

        class Counting(concurrent.futures.ProcessPoolExecutor):
            count = 0
            def submit(self, fn, *args):
                self.count += 1
                return super().submit(fn, *args)

        if __name__ == "__main__":
            print(ProcessPoolExecutor.__module__, concurrent.futures.ProcessPoolExecutor.__module__)
            with Counting(2) as executor:
                print(list(executor.map(abs, [-1, -2])), executor.count)
                print(executor.submit(os.kill, executor.submit(os.getpid).result(), 0).result())
    """
    ours = "phalanx.futures phalanx.futures"
    assert output(tmp_path, write(tmp_path, program)) == [ours, "[1, 2] 2", "None"]


@pytest.mark.parametrize("method", METHODS)
def test_objects_of_the_programs_own_classes_come_back(tmp_path, method):
    program = f"""
        import multiprocessing
        class Point:
            def __init__(self, x):
                self.x = x
        def point(x):
            return Point(x)
        if __name__ == "__main__":
            with multiprocessing.get_context("{method}").Pool(1) as pool:
                print([type(each) is Point and each.x for each in pool.map(point, [1, 2])])
    """
    name = write(tmp_path, program)
    assert both(tmp_path, name).stdout == "[1, 2]\n"
    assert both(tmp_path, "-m", "program").stdout == "[1, 2]\n"


@pytest.mark.parametrize("method", METHODS)
def test_a_program_that_is_run_by_another_has_its_objects_back(tmp_path, method):
    program = f"""
        import multiprocessing
        class Point:
            pass
        def point(_):
            return Point()
        if __name__ == "__main__":
            with multiprocessing.get_context("{method}").Pool(1) as pool:
                print(type(pool.map(point, [1])[0]) is Point)
    """
    write(tmp_path, program, "inner.py")
    runner = """
        import multiprocessing, runpy
        if __name__ == "__main__":
            runpy.run_path("inner.py", run_name="__main__")
    """
    assert output(tmp_path, "-m", "phalanx", write(tmp_path, runner)) == ["True"]


@pytest.mark.parametrize("method", METHODS)
def test_proxies_made_for_a_type_work_beside_others_in_a_child(tmp_path, method):
    program = f"""
        import multiprocessing
        from multiprocessing.managers import BaseManager, DictProxy
        class Settings:
            def set(self, name):
                return name
        class Manager(BaseManager):
            pass
        Manager.register("Settings", Settings)
        Manager.register("dict", dict, DictProxy)
        def child(settings, mapping):
            mapping["set"] = settings.set("name")
        if __name__ == "__main__":
            context = multiprocessing.get_context("{method}")
            with Manager(ctx=context) as manager:
                settings, mapping = manager.Settings(), manager.dict()
                with context.Pool(1) as pool:
                    pool.apply(child, (settings, mapping))
                print(mapping)
    """
    assert both(tmp_path, write(tmp_path, program)).stdout == "{'set': 'name'}\n"


def test_a_program_that_is_not_installed_gets_its_own_proxies(tmp_path):
    client = """
        import multiprocessing, sys
        from multiprocessing.managers import SyncManager
        multiprocessing.current_process().authkey = b"key"
        manager = SyncManager(sys.argv[1], authkey=b"key")
        manager.connect()
        mapping = manager.dict(b=manager.list([1, 2]))
        print(type(mapping["b"]).__module__, list(mapping["b"]), "phalanx" in sys.modules)
    """
    server = f"""
        import subprocess, sys
        from multiprocessing.managers import SyncManager
        if __name__ == "__main__":
            with SyncManager(authkey=b"key") as manager:
                command = [sys.executable, {write(tmp_path, client, "client.py")!r}]
                subprocess.run([*command, manager.address], check=True)
    """
    told = both(tmp_path, write(tmp_path, server)).stdout
    assert told == "multiprocessing.managers [1, 2] False\n"


def test_a_pool_of_threads_is_a_pool_as_ever(tmp_path):
    program = """
        import multiprocessing.pool
        from multiprocessing.pool import AsyncResult, Pool, ThreadPool
        def function(result: AsyncResult[int]) -> AsyncResult[str] | None: ...
        with ThreadPool(1) as pool:
            print(isinstance(pool, multiprocessing.pool.Pool), issubclass(ThreadPool, Pool))
    """
    assert both(tmp_path, write(tmp_path, program)).stdout == "True True\n"
