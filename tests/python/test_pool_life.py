"""A pool begins and ends as it was told, whoever forgets, forks or dies."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import phalanx
import pytest
import tasks
from tasks import (
    is_running,
    note,
    note_and_wait,
    pid_of_worker,
    sleep,
    slow_pid,
    square,
    squares_in_a_pool,
    wait_for,
    wait_until,
)

QUICKLY = 5.0  # seconds, on a busy machine
ORPHANS_GONE_WITHIN = 3.0  # seconds; the promise is one, on a machine that has nothing else to do


def worker_pids(pool):
    return [process.pid for process in pool._pool]


def gone(pids):
    return not any(map(is_running, pids))


def test_close_and_join_finish_what_was_submitted(pool, log):
    results = [pool.apply_async(note, (log, i)) for i in range(100)]
    pool.close()
    pool.join()
    assert [result.get(timeout=0) for result in results] == list(range(100))
    assert sorted(map(int, log.lines())) == list(range(100))


def test_a_joined_pool_has_no_workers_and_no_zombies(pool):
    pool.map(square, range(10))
    pids = worker_pids(pool)
    pool.close()
    pool.join()
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_leaving_the_with_block_terminates(ctx, log):
    started = time.monotonic()
    with ctx.Pool(2) as pool:
        pool.apply_async(note_and_wait, (log, "started", "never"))
        wait_until(log.lines, "the task")
        pids = worker_pids(pool)
    wait_until(lambda: gone(pids), "the workers' end")
    assert time.monotonic() - started < QUICKLY + 5
    pool.join()


def test_terminate_does_not_wait_for_running_tasks(pool, log):
    pool.map_async(sleep, [60] * 10, 1)
    held = pool.apply_async(note_and_wait, (log, "x", "never"))
    started = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - started < QUICKLY
    assert not held.ready() or not held.successful()


def test_a_task_of_a_terminated_pool_raises_and_does_not_hang(pool, log):
    running = pool.apply_async(note_and_wait, (log, "started", "never"))
    waiting = [pool.apply_async(square, (x,)) for x in range(10)]
    wait_until(log.lines, "the task")
    pool.terminate()
    pool.join()
    with pytest.raises(Exception, match=r"(?i)pool"):
        running.get(timeout=QUICKLY)
    for result in waiting:
        assert wait_until(result.ready, "an answer of some kind") < QUICKLY


def test_terminate_wakes_a_thread_that_waits(pool, log):
    running = pool.apply_async(note_and_wait, (log, "started", "never"))
    raised = []

    def get():
        try:
            running.get()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    wait_until(log.lines, "the task")
    pool.terminate()
    thread.join(QUICKLY)
    assert raised


def test_terminate_and_close_can_be_said_again(pool):
    pool.close()
    pool.close()
    pool.terminate()
    pool.terminate()
    pool.join()
    pool.join()


def test_join_wants_the_pool_closed_first(pool):
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()


CALLS = {
    "apply": (square, (1,)),
    "apply_async": (square, (1,)),
    "map": (square, [1]),
    "map_async": (square, [1]),
    "imap": (square, [1]),
    "imap_unordered": (square, [1]),
    "starmap": (square, [(1,)]),
    "starmap_async": (square, [(1,)]),
}


@pytest.mark.parametrize("state", ["closed", "joined", "terminated"])
@pytest.mark.parametrize("name", CALLS)
def test_a_closed_pool_says_so(state, name):
    pool = phalanx.get_context("fork").Pool(1)
    pool.close()
    if state == "joined":
        pool.join()
    if state == "terminated":
        pool.terminate()
    with pytest.raises(ValueError, match="Pool not running"):
        getattr(pool, name)(*CALLS[name])
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    pool.terminate()
    pool.join()


def test_a_pool_cannot_be_pickled(pool):
    with pytest.raises(NotImplementedError, match="pool objects cannot be passed"):
        pickle.dumps(pool)


def test_a_pool_says_what_it_is(pool):
    assert "RUN" in repr(pool)
    assert "pool_size=2" in repr(pool)
    pool.close()
    assert "CLOSE" in repr(pool)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["apply", "map", "imap", "apply_async", "close", "terminate"])
def test_a_pool_inherited_by_fork_says_so_and_stays_whole(pool, name):
    assert pool.apply(square, (2,)) == 4
    pending = pool.apply_async(slow_pid, (0.2,))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            getattr(pool, name)(*CALLS.get(name, ()))
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0
    if name in ("close", "terminate"):
        assert said == "nothing" or "fork" in said
    else:
        assert "fork" in said
    assert pending.get() in worker_pids(pool)
    assert pool.map(square, range(10)) == [x * x for x in range(10)]


def test_maxtasksperchild_replaces_workers(ctx):
    with ctx.Pool(1, maxtasksperchild=2) as pool:
        pids = pool.map(pid_of_worker, range(6), 1)
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 2]
        pool.close()
        pool.join()


def test_maxtasksperchild_loses_and_repeats_nothing(ctx, log):
    with ctx.Pool(2, maxtasksperchild=3) as pool:
        results = [pool.apply_async(note, (log, x)) for x in range(60)]
        assert [result.get() for result in results] == list(range(60))
        assert sorted(map(int, log.lines())) == list(range(60))
        assert list(pool.imap(square, range(20), 4)) == [x * x for x in range(20)]
        pool.close()
        pool.join()


def test_a_pool_that_is_dropped_warns_and_takes_its_workers_along(ctx, monkeypatch):
    said = []
    # Not pytest.warns, which keeps what a warning is about: the pool.
    monkeypatch.setattr(warnings, "showwarning", lambda *args: said.append(str(args[0])))
    warnings.simplefilter("always", ResourceWarning)
    pool = ctx.Pool(2)
    pool.map(square, range(4))
    pids = worker_pids(pool)
    del pool
    gc.collect()
    wait_until(lambda: gone(pids), "the workers' end")
    assert any("unclosed running multiprocessing pool" in each for each in said)


def run_script(tmp_path, body, method):
    """Start a script whose ``main`` is ``body``, with a context of ``method`` as ``ctx``."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "import phalanx\n"
        "def square(x): return x * x\n"
        "def pause(x): time.sleep(x)\n"
        "def main(ctx):\n"
        f"{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "if __name__ == '__main__':\n"
        f"    main(phalanx.get_context({method!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


FORGOTTEN = {
    "idle": "global pool; pool = ctx.Pool(2); print(pool.map(square, [1, 2]))",
    "busy": "global pool; pool = ctx.Pool(2); pool.map_async(pause, [60] * 4, 1); print('[1, 4]')",
    "local": "pool = ctx.Pool(2); print(pool.map(square, [1, 2]))",
    "imap half-way": """
        global pool, iterator
        import itertools
        pool = ctx.Pool(2)
        iterator = pool.imap(square, itertools.count(1))
        print([next(iterator), next(iterator)])
        """,
    "error": "global pool; pool = ctx.Pool(2); print(pool.map(square, [1, 2])); sys.exit(0)",
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_forgotten_pool_does_not_keep_the_program_from_ending(tmp_path, method, what):
    with run_script(tmp_path, FORGOTTEN[what], method) as program:
        out, err = program.communicate(timeout=30)
    assert (out, program.returncode) == ("[1, 4]\n", 0), err
    assert "Traceback" not in err


WORK = {"idle": "pool.map(square, [1, 2])", "busy": "pool.map_async(pause, [60] * 10, 1)"}


@pytest.mark.parametrize("what", WORK)
def test_workers_die_with_a_parent_that_is_killed(tmp_path, method, what, record_property):
    body = f"""
        pool = ctx.Pool(2)
        pool.map(square, range(10), 1)
        work = {WORK[what]}
        print(*[process.pid for process in pool._pool], flush=True)
        time.sleep(60)
        """
    with run_script(tmp_path, body, method) as program:
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        program.kill()
        seconds = wait_until(lambda: gone(pids), "the workers' end", ORPHANS_GONE_WITHIN)
    record_property("gone_after_ms", round(seconds * 1e3, 1))


def test_a_program_without_a_main_guard_is_told_and_is_no_fork_bomb(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import phalanx\n"
        "pool = phalanx.get_context('spawn').Pool(2)\n"
        "print(pool.map(abs, [-1, -2]))\n"
    )
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=50
    )
    assert "bootstrapping phase" in run.stderr
    assert "__main__" in run.stderr


def test_processes_started_by_the_pool_are_of_its_context(ctx):
    with ctx.Pool(1) as pool:
        (worker,) = pool._pool
        assert isinstance(worker, ctx.Process)
        assert worker.daemon
        assert worker.is_alive()
        pool.terminate()
        pool.join()
        assert not worker.is_alive()


def test_a_task_may_have_a_pool_of_its_own(ctx, method):
    with ctx.Pool(2) as pool:
        results = [pool.apply_async(squares_in_a_pool, (method, count)) for count in (3, 5)]
        assert [result.get() for result in results] == [[0, 1, 4], [0, 1, 4, 9, 16]]


@pytest.mark.parametrize("daemon", [None, False, True])
def test_a_task_may_start_a_process(ctx, method, daemon):
    with ctx.Pool(1) as pool:
        assert pool.apply(tasks.child_of_a_task, (method, daemon)) == 0


def test_a_task_may_start_a_manager(ctx, method):
    with ctx.Pool(1) as pool:
        assert pool.apply(tasks.manager_of_a_task, (method,)) == {"one": 1}


@pytest.mark.parametrize("how", ["return", "return much", "raise"])
def test_a_fork_that_leaves_the_task_ends_and_says_nothing(ctx, how):
    with ctx.Pool(1) as pool:
        assert [pool.apply(tasks.fork_and_let_it, (how,)) for _ in range(2)] == [0, 0]
        assert pool.map(tasks.square, range(3)) == [0, 1, 4]


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_daemons_children_end_with_it(ctx, method, log, how):
    daemon = ctx.Process(target=tasks.have_a_child, args=(method, log), daemon=True)
    daemon.start()
    tasks.wait_until(log.lines, "the child's word")
    (pid,) = map(int, log.lines())
    getattr(daemon, how)()
    daemon.join()
    tasks.wait_until(lambda: not tasks.is_running(pid), "the child's end", 1)


def test_a_workers_children_end_with_a_terminated_pool(ctx, method, log):
    with ctx.Pool(1) as pool:
        pool.apply_async(tasks.have_a_child, (method, log))
        tasks.wait_until(log.lines, "the child's word")
    (pid,) = map(int, log.lines())
    tasks.wait_until(lambda: not tasks.is_running(pid), "the child's end", 1)


def test_printing_in_a_worker_reaches_the_terminal(tmp_path, method):
    body = """
        with ctx.Pool(1) as pool:
            pool.apply(print, ("from the worker",))
            pool.close()
            pool.join()
        print("from the parent")
        """
    with run_script(tmp_path, body, method) as program:
        out, err = program.communicate(timeout=30)
    assert out == "from the worker\nfrom the parent\n", err


def test_interrupting_a_wait_raises_keyboard_interrupt_here(pool, log):
    pool.apply_async(note_and_wait, (log, "started", "never"))
    held = pool.apply_async(wait_for, (log, "never"))
    wait_until(log.lines, "the task")
    timer = threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        held.get()
    timer.join()
    assert worker_pids(pool)


def test_preloaded_modules_are_there_before_the_first_task(ctx, tmp_path, monkeypatch, log):
    (tmp_path / "heavy.py").write_text(
        f"import os\nwith open({log.path!r}, 'a') as f: f.write(f'{{os.getpid()}}\\n')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if ctx._name == "forkserver":
        phalanx.forkserver._forkserver._stop()  # the next one has this path from its start
    with ctx.Pool(2, preload=["heavy", "json"]) as pool:
        loaded = pool.map(tasks.is_loaded, ["heavy", "json", "heavy", "json"], 1)
        tasks.wait_until(lambda: all(it.startup for it in pool.stats()), "both workers")
        pids = [str(worker.pid) for worker in pool.stats()]
    assert loaded == [True] * 4
    if ctx._name == "forkserver":
        (pid,) = log.lines()
        assert pid not in pids, "the template has imported it, and nobody else"
    else:
        assert sorted(log.lines()) == sorted(pids)


def test_a_module_that_cannot_be_preloaded_is_told_to_every_call(ctx):
    told = pytest.raises(phalanx.InitializerFailed, match="No module named 'no_such_module'")
    with ctx.Pool(1, preload=("no_such_module",)) as pool, told:
        pool.apply(tasks.nothing)


@pytest.mark.parametrize("preload", [[1], [""], 3])
def test_what_is_no_module_name_is_not_preloaded(ctx, preload):
    with pytest.raises(TypeError):
        ctx.Pool(1, preload=preload)
