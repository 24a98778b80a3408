"""Processes: how they start, what they know, and how they end."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from multiprocessing import shared_memory
from pathlib import Path

import phalanx
import phalanx.forkserver
import pytest
from tasks import wait_until

PATIENCE = 20.0  # seconds that anything here may take


def run(process):
    """Start, join, and the exit code."""
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    process.close()
    return code


def program(tmp_path: Path, text: str, *, name: str = "program.py") -> Path:
    """A script of ours."""
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path


def python(*args: object, **more) -> subprocess.CompletedProcess[str]:
    """Run another Python with this one's phalanx."""
    path = str(Path(phalanx.__file__).parents[1])
    env = dict(os.environ, PYTHONPATH=path)
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=env, check=False, **more
    )


def leave(value):
    sys.exit(value)


def raise_error():
    raise ZeroDivisionError("on purpose")


def kill_myself(number):
    os.kill(os.getpid(), number)


def sleep_long():
    time.sleep(600)


def nothing():
    pass


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (7, 7), (255, 255), ("words", 1)])
def test_the_exit_code_is_what_sys_exit_says(ctx, value, code):
    assert run(ctx.Process(target=leave, args=(value,))) == code


def test_an_uncaught_exception_is_shown_and_ends_with_1(ctx, capfd):
    assert run(ctx.Process(target=raise_error, name="unlucky")) == 1
    err = capfd.readouterr().err
    assert "Process unlucky:" in err
    assert "ZeroDivisionError: on purpose" in err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_negative_exit_code(ctx, number):
    assert run(ctx.Process(target=kill_myself, args=(number,))) == -number


@pytest.mark.parametrize(
    ("method_name", "code"), [("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)]
)
def test_a_running_process_can_be_ended(ctx, method_name, code):
    process = ctx.Process(target=sleep_long)
    process.start()
    assert process.is_alive()
    assert process.exitcode is None
    with pytest.raises(ValueError, match="still running"):
        process.close()
    getattr(process, method_name)()
    process.join(PATIENCE)
    assert process.exitcode == code
    getattr(process, method_name)()  # of one that has ended: nothing happens
    process.close()


def wait_for_interrupt(ready):
    try:
        ready.send("ready")
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(5)


def test_interrupt_raises_keyboard_interrupt_there(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=wait_for_interrupt, args=(there,))
    process.start()
    assert here.recv() == "ready"
    process.interrupt()
    process.join(PATIENCE)
    assert process.exitcode == 5
    process.close()
    here.close()
    there.close()


def test_join_waits_no_longer_than_it_was_told(ctx):
    process = ctx.Process(target=sleep_long)
    process.start()
    before = time.monotonic()
    process.join(0.2)
    assert 0.2 <= time.monotonic() - before < 5
    assert process.is_alive()
    process.kill()
    process.join(PATIENCE)
    process.close()


def test_the_sentinel_is_ready_once_the_exit_code_is(ctx):
    process = ctx.Process(target=leave, args=(3,))
    process.start()
    assert multiprocessing.connection.wait([process.sentinel], PATIENCE) == [process.sentinel]
    assert process.exitcode == 3
    process.close()


class Subclass(phalanx.Process):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def run(self):
        sys.exit(self.answer)


def test_subclasses_run_their_own_run(method):
    before = phalanx.get_start_method(allow_none=True)
    phalanx.set_start_method(method, force=True)
    try:
        assert run(Subclass(42)) == 42
    finally:
        phalanx.set_start_method(before, force=True)


def test_it_is_one_of_the_standard_librarys(ctx):
    event = ctx.Event()
    process = ctx.Process(target=event.wait, args=(PATIENCE,))
    assert isinstance(process, multiprocessing.process.BaseProcess)
    assert isinstance(ctx, multiprocessing.context.BaseContext)
    process.start()
    assert process in multiprocessing.active_children()
    assert process in phalanx.active_children()
    event.set()
    process.join(PATIENCE)
    assert process not in phalanx.active_children()
    process.close()


def tell_world(conn):
    parent = phalanx.parent_process()
    conn.send(
        {
            "argv": sys.argv,
            "path": sys.path,
            "cwd": os.getcwd(),
            "environ": os.environ.get("PHALANX_TEST"),
            "gone": os.environ.get("PHALANX_TEST_GONE"),
            "method": phalanx.get_start_method(),
            "name": phalanx.current_process().name,
            "daemon": phalanx.current_process().daemon,
            "authkey": bytes(phalanx.current_process().authkey),
            "parent": (parent.pid, parent.is_alive()),
        }
    )


def test_a_child_has_the_world_of_the_moment_of_its_start(ctx, method, tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_TEST_GONE", "before")
    assert run(ctx.Process(target=nothing)) == 0  # a template has been started by now
    monkeypatch.delenv("PHALANX_TEST_GONE")
    monkeypatch.setenv("PHALANX_TEST", "now")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["words", "of", "now"])
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    here, there = ctx.Pipe()
    process = ctx.Process(target=tell_world, args=(there,), name="explorer", daemon=True)
    process.start()
    world = here.recv()
    process.join(PATIENCE)
    process.close()
    here.close()
    there.close()
    assert world["argv"] == ["words", "of", "now"]
    assert str(tmp_path / "more") in world["path"]
    assert world["cwd"] == str(tmp_path)
    assert (world["environ"], world["gone"]) == ("now", None)
    assert world["method"] == method
    assert (world["name"], world["daemon"]) == ("explorer", True)
    assert world["authkey"] == bytes(phalanx.current_process().authkey)
    assert world["parent"] == (os.getpid(), True)


def start_another(ctx_name):
    leave(run(phalanx.get_context(ctx_name).Process(target=leave, args=(9,))))


def test_children_have_children(method):
    for outer in phalanx.get_all_start_methods():
        process = phalanx.get_context(outer).Process(target=start_another, args=(method,))
        assert run(process) == 9


def exit_at_once():
    os._exit(4)


def test_a_child_that_ends_before_its_start_returns_is_not_lost(ctx):
    for _ in range(30):
        assert run(ctx.Process(target=exit_at_once)) == 4


@pytest.mark.time_limit(120)
def test_two_hundred_processes_leave_nothing(method):
    if method == "spawn":
        pytest.skip("two hundred interpreters take a minute")
    ctx = phalanx.get_context(method)
    before = set(os.listdir("/proc/self/fd"))
    processes = [ctx.Process(target=nothing) for _ in range(200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
        process.close()
    # Parents open one descriptor for all their children: themselves.
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


def test_many_threads_may_start_processes_at_once(ctx):
    codes = []

    def start_some(code):
        for _ in range(3):
            codes.append(run(ctx.Process(target=leave, args=(code,))) == code)

    threads = [threading.Thread(target=start_some, args=(code,)) for code in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [True] * 12


def write_all(conns):
    for number, conn in enumerate(conns):
        conn.send(number)


@pytest.mark.parametrize("count", [10, 400])
def test_many_descriptors_travel(ctx, count):
    pipes = [ctx.Pipe(duplex=False) for _ in range(count)]
    assert run(ctx.Process(target=write_all, args=([w for _, w in pipes],))) == 0
    assert [r.recv() for r, _ in pipes] == list(range(count))
    for pipe in pipes:
        for end in pipe:
            end.close()


def test_arguments_of_any_size_travel(ctx):
    assert run(ctx.Process(target=len, args=(bytes(30 << 20),))) == 0


def create_memory(conn):
    block = shared_memory.SharedMemory(create=True, size=64)
    block.buf[0] = 77
    conn.send(block.name)
    block.close()


def test_shared_memory_outlives_the_child_that_made_it(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=create_memory, args=(there,))
    process.start()
    name = here.recv()
    process.join(PATIENCE)
    process.close()
    block = shared_memory.SharedMemory(name=name)
    assert block.buf[0] == 77
    block.close()
    block.unlink()
    here.close()
    there.close()


def test_somebody_elses_waitpid_costs_only_the_code(method):
    ctx = phalanx.get_context(method)
    process = ctx.Process(target=leave, args=(3,))
    process.start()
    multiprocessing.connection.wait([process.sentinel], PATIENCE)
    try:
        os.waitpid(process.pid, 0)
    except ChildProcessError:  # it is the template's
        assert method == "forkserver"
    process.join(PATIENCE)
    assert process.exitcode == (3 if method == "forkserver" else 255)
    process.close()


def test_an_interrupted_join_can_be_joined_again(ctx):
    process = ctx.Process(target=sleep_long)
    process.start()
    main = threading.main_thread().ident
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        process.join(PATIENCE)
    timer.join()
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()


# The template


@pytest.fixture
def template():
    """The context that uses it, and the pid of a running one."""
    phalanx.forkserver.ensure_running()
    return phalanx.get_context("forkserver"), phalanx.forkserver._forkserver._forkserver_pid


def test_a_killed_template_is_started_again(template):
    ctx, pid = template
    running = ctx.Process(target=sleep_long)
    running.start()
    os.kill(pid, signal.SIGKILL)
    assert run(ctx.Process(target=leave, args=(6,))) == 6
    assert phalanx.forkserver._forkserver._forkserver_pid != pid
    assert running.is_alive()  # its children live on, and are still watched
    running.terminate()
    running.join(PATIENCE)
    assert running.exitcode == 255  # but their codes died with it
    running.close()


def test_whenever_a_template_is_killed_no_child_runs_twice(log):
    ctx = phalanx.get_context("forkserver")
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            pid = phalanx.forkserver._forkserver._forkserver_pid
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    well = set()
    try:
        for number in range(100):
            process = ctx.Process(target=log.add, args=(number,))
            try:
                process.start()
            except OSError:
                continue  # two templates in a row were killed
            process.join()
            if process.exitcode == 0:
                well.add(str(number))
    finally:
        over.set()
        killer.join()
    lines = log.lines()
    assert len(lines) == len(set(lines))
    assert well <= set(lines)


@pytest.fixture
def stopped(template):
    """As `template`, which is stopped and reports nothing."""
    ctx, pid = template

    def stop() -> None:
        os.kill(pid, signal.SIGSTOP)

    yield ctx, stop
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_a_join_of_what_has_ended_while_its_template_is_stopped_keeps_to_its_timeout(stopped):
    ctx, stop = stopped
    process = ctx.Process(target=sleep_long)
    process.start()
    stop()
    process.kill()
    start = time.monotonic()
    process.join(0.5)
    assert time.monotonic() - start < PATIENCE / 2
    os.kill(phalanx.forkserver._forkserver._forkserver_pid, signal.SIGCONT)
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


def test_a_pool_whose_template_is_stopped_tells_of_deaths_and_goes_on(stopped):
    ctx, stop = stopped
    with ctx.Pool(2) as pool:
        doomed = pool.apply_async(time.sleep, (600,))
        wait_until(lambda: any(worker.running for worker in pool.stats()), "the task")
        (pid,) = [worker.pid for worker in pool.stats() if worker.running]
        stop()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(phalanx.WorkerDied):
            doomed.get(PATIENCE)
        assert pool.map_async(abs, range(-100, 0), 1).get(PATIENCE) == list(range(100, 0, -1))
        os.kill(phalanx.forkserver._forkserver._forkserver_pid, signal.SIGCONT)
        wait_until(lambda: all(worker.pid for worker in pool.stats()), "the next worker")


@pytest.mark.time_limit(120)
def test_a_template_that_stays_stopped_is_replaced_and_nobody_waits_for_ever(stopped, log):
    ctx, stop = stopped
    before = phalanx.forkserver._forkserver._forkserver_pid
    ended = ctx.Process(target=sleep_long)
    ended.start()
    stop()
    ended.kill()
    processes = [ctx.Process(target=log.add, args=(number,)) for number in range(3)]
    starting = [threading.Thread(target=process.start) for process in processes]
    for thread in starting:
        thread.start()
    ended.join()
    assert ended.exitcode == 255  # which only the template knew
    for thread, process in zip(starting, processes, strict=True):
        thread.join()
        process.join()
        assert process.exitcode == 0
    assert sorted(log.lines()) == ["0", "1", "2"]
    assert gone(before)


@pytest.mark.time_limit(120)
def test_a_pool_whose_template_stays_stopped_has_its_workers_from_another(stopped):
    ctx, stop = stopped
    stop()
    with ctx.Pool(2) as pool:
        assert pool.map(abs, range(-10, 0)) == list(range(10, 0, -1))


def test_a_stopped_template_ends(template):
    ctx, pid = template
    phalanx.forkserver._forkserver._stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert run(ctx.Process(target=leave, args=(6,))) == 6


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_template_ends_with_its_owner_however_that_died(tmp_path):
    script = program(
        tmp_path,
        """
        import os, signal, phalanx, phalanx.forkserver
        if __name__ == "__main__":
            phalanx.forkserver.ensure_running()
            print(phalanx.forkserver._forkserver._forkserver_pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    result = python(script)
    assert result.returncode == -signal.SIGKILL
    wait_until(lambda: gone(int(result.stdout)), "the template's end")


@pytest.mark.parametrize("state", ["serves", "imports"])
def test_a_template_that_is_stopped_or_hangs_ends_with_its_owner(tmp_path, state):
    program(
        tmp_path,
        """
        import os, signal, time
        print(os.getpid(), flush=True)
        if os.environ["STATE"] == "imports":
            time.sleep(600)
        """,
        name="slow.py",
    )
    script = program(
        tmp_path,
        """
        import os, phalanx, phalanx.forkserver, signal, sys
        if __name__ == "__main__":
            phalanx.set_forkserver_preload(["slow"])
            phalanx.forkserver.ensure_running()
            if os.environ["STATE"] == "serves":
                process = phalanx.get_context("forkserver").Process(target=int)
                process.start()
                process.join()
                os.kill(phalanx.forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
                print(flush=True)
            sys.stdin.read()
        """,
    )
    env = dict(os.environ, PYTHONPATH=str(Path(phalanx.__file__).parents[1]), STATE=state)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], env=env, **pipes) as owner:
        pid = int(owner.stdout.readline())
        if state == "serves":
            owner.stdout.readline()
        assert not gone(pid)
        owner.kill()
        owner.wait(PATIENCE)
        wait_until(lambda: gone(pid), "the template's end")


def test_a_template_runs_exit_handlers_of_what_it_has_imported(tmp_path):
    program(
        tmp_path,
        """
        import atexit, os, time
        def leave(pid=os.getpid()):
            if os.getpid() == pid:
                time.sleep(0.1)  # its owner has ended by then
                print("left", flush=True)
        atexit.register(leave)
        """,
        name="polite.py",
    )
    script = program(
        tmp_path,
        """
        import phalanx
        if __name__ == "__main__":
            phalanx.set_forkserver_preload(["polite"])
            process = phalanx.get_context("forkserver").Process(target=int)
            process.start()
            process.join()
        """,
    )
    assert python(script).stdout == "left\n"


def test_the_main_module_and_the_targets_are_imported_once(tmp_path):
    program(tmp_path, "print('imported late', flush=True)\ndef work(): pass\n", name="late.py")
    script = program(
        tmp_path,
        """
        import phalanx
        print("imported", __name__, flush=True)
        def work(): pass
        if __name__ == "__main__":
            import late
            ctx = phalanx.get_context("forkserver")
            for target in [work, late.work] * 3:
                process = ctx.Process(target=target)
                process.start()
                process.join()
                assert process.exitcode == 0
        """,
    )
    result = python(script)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines.count("imported __mp_main__") == 1
    assert lines.count("imported late") == 2  # here, and in the template


@pytest.mark.parametrize(
    "deed", ["os._exit(1)", "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"]
)
def test_a_module_that_does_not_agree_with_the_template_is_left_to_the_children(tmp_path, deed):
    program(
        tmp_path,
        f"""
        import os, sys, threading, time, phalanx
        this = phalanx.current_process()
        if this.name == "MainProcess" and getattr(this, "_inheriting", False):
            {deed}
        def work(): sys.exit(8 + threading.active_count())
        """,
        name="shy.py",
    )
    script = program(
        tmp_path,
        """
        import phalanx
        if __name__ == "__main__":
            import shy
            process = phalanx.get_context("forkserver").Process(target=shy.work)
            process.start()
            process.join()
            raise SystemExit(process.exitcode)
        """,
    )
    result = python(script)
    assert (result.stderr, result.returncode) == ("", 9)


@pytest.mark.parametrize(("on_error", "ok"), [("ignore", True), ("warn", True), ("fail", False)])
def test_a_preload_that_fails_does_what_it_was_told_to(tmp_path, on_error, ok):
    program(tmp_path, "raise OSError('not today')\n", name="broken.py")
    script = program(
        tmp_path,
        f"""
        import phalanx
        if __name__ == "__main__":
            phalanx.set_forkserver_preload(["broken"], on_error={on_error!r})
            process = phalanx.get_context("forkserver").Process(target=print, args=("ran",))
            process.start()
            process.join()
        """,
    )
    result = python(script)
    assert ("ran" in result.stdout) == ok
    assert (result.returncode == 0) == ok
    assert ("not today" in result.stderr) == (on_error != "ignore")


# The main module, in every shape

MAIN = """
import sys
import phalanx
def work(): print("worked", flush=True)
if __name__ == "__main__":
    ctx = phalanx.get_context(sys.argv[-1])
    process = ctx.Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("shape", ["script", "module", "package", "zip", "isolated"])
def test_the_main_module_is_found_again(tmp_path, method, shape):
    if shape == "package":
        (tmp_path / "pack").mkdir()
        program(tmp_path / "pack", "", name="__init__.py")
        program(tmp_path / "pack", MAIN, name="__main__.py")
        if method != "fork":
            # As in CPython, what is in a __main__.py is not imported again.
            pytest.skip("a target in a __main__.py cannot be found")
        result = python("-m", "pack", method, cwd=tmp_path)
    elif shape == "zip":
        with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
            archive.writestr("__main__.py", "import inside; inside.main()")
            archive.writestr("inside.py", MAIN.replace('if __name__ == "__main__":', "def main():"))
        result = python(tmp_path / "app.zip", method)
    else:
        script = program(tmp_path, MAIN)
        if shape == "module":
            result = python("-m", "program", method, cwd=tmp_path)
        elif shape == "script":
            result = python(script, method, cwd="/")
        else:
            find_us = f"sys.path.insert(0, {str(Path(phalanx.__file__).parents[1])!r})"
            script.write_text(MAIN.replace("import phalanx\n", f"{find_us}\nimport phalanx\n"))
            result = python("-I", "-S", script, method)
    assert (result.stderr, result.stdout, result.returncode) == ("", "worked\n", 0)


def test_a_command_line_is_a_main_module_too(method):
    code = (
        "import phalanx; "
        f"p = phalanx.get_context({method!r}).Process(target=print, args=('worked',)); "
        "p.start(); p.join(); raise SystemExit(p.exitcode)"
    )
    result = python("-c", code)
    assert (result.stderr, result.stdout, result.returncode) == ("", "worked\n", 0)


@pytest.mark.parametrize("method_name", ["spawn", "forkserver"])
def test_a_main_module_without_guard_is_explained_and_no_fork_bomb(tmp_path, method_name):
    script = program(
        tmp_path,
        f"""
        import phalanx
        process = phalanx.get_context({method_name!r}).Process(target=print, args=("ran",))
        process.start()
        process.join()
        raise SystemExit(process.exitcode)
        """,
    )
    result = python(script)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("An attempt has been made to start a new process before") == 1


# What we add


def test_a_death_survives_pickling_and_says_what_it_was():
    died = pickle.loads(
        pickle.dumps(phalanx.WorkerDied(4711, -signal.SIGSEGV, task="module.function"))
    )
    assert (died.pid, died.exitcode, died.task) == (4711, -11, "module.function")
    assert (died.signal, died.signal_name) == (11, "SIGSEGV")
    assert str(died) == "worker 4711 was killed by SIGSEGV while running `module.function`"
    assert isinstance(died, phalanx.ProcessError)
    assert "out-of-memory" in str(phalanx.WorkerDied(1, -signal.SIGKILL))
    assert str(phalanx.WorkerDied(1, 3)) == "worker 1 exited with code 3 while running a task"


def test_the_names_are_the_standard_librarys_and_ours():
    ours = {"AbandonedLock", "InitializerFailed", "RemoteError", "WorkerDied", "install"}
    ours |= {"ChildSpec", "Supervisor", "SupervisorFailed", "WorkerMemoryExceeded"}
    ours |= {"ProcessPoolExecutor", "Shared", "TaskCancelled", "TaskTimeout", "loan", "share"}
    assert set(phalanx.__all__) == set(multiprocessing.__all__) | ours
    for name in phalanx.__all__:
        assert hasattr(phalanx, name)


def test_importing_starts_nothing():
    code = (
        "import os, threading, phalanx; "
        "print(threading.active_count(), os.path.exists('/proc/self/task') and "
        "len(os.listdir('/proc/self/task')), "
        "open(f'/proc/self/task/{os.getpid()}/children').read().split())"
    )
    assert python("-c", code).stdout == "1 1 []\n"
