"""The checker that runs after every test finds what it is there for."""

import os
import socket
import subprocess
import sys
import threading
from multiprocessing import shared_memory
from pathlib import Path

from leaks import Holdings, descendants, kill_since, leaked_since, tasks
from tasks import wait_until

PATIENCE = 0.05  # seconds: what leaks here does so on purpose


def test_finds_nothing_where_nothing_is():
    before = Holdings()
    subprocess.run(["true"], check=True)
    assert leaked_since(before, PATIENCE) == []


def test_finds_a_child():
    before = Holdings()
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert leaked_since(before, PATIENCE) == [f"process {child.pid}: sleep 60"]
        assert leaked_since(before, PATIENCE, frozenset([child.pid])) == []
    finally:
        kill_since(before)
        child.wait()


def test_finds_and_kills_an_orphaned_grandchild():
    before = Holdings()
    subprocess.run("setsid sleep 61 & exit", shell=True, check=True)
    (leaked,) = leaked_since(before, PATIENCE)
    assert leaked.endswith("sleep 61")
    kill_since(before)
    wait_until(lambda: not set(descendants()) - set(before.processes), "the orphan's death")


def test_finds_a_thread_of_python():
    before = Holdings()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-running")
    thread.start()
    assert any("left-running" in each for each in leaked_since(before, PATIENCE))
    stop.set()
    thread.join()
    assert leaked_since(before, PATIENCE) == []


def test_finds_a_thread_that_python_does_not_know():
    import _thread  # noqa: PLC0415

    before = Holdings()
    stop = threading.Lock()
    stop.acquire()
    _thread.start_new_thread(stop.acquire, ())
    assert any(each.startswith("thread ") for each in leaked_since(before, PATIENCE))
    stop.release()


def test_misses_no_thread_while_others_end():
    # One that was missed before a test, and seen after it, would be its leak.
    import _thread  # noqa: PLC0415

    def stay() -> None:
        names.append(str(threading.get_native_id()))
        with stop:
            ended.release()

    names: list[str] = []
    for _ in range(2000):  # of 1000 single listings of /proc/self/task, one is too short
        for _ in range(3):
            _thread.start_new_thread(int, ())
        stop, ended = threading.Lock(), threading.Lock()
        with stop:
            ended.acquire()
            _thread.start_new_thread(stay, ())
            seen = tasks()
        ended.acquire()
        assert names[-1] in seen


def test_finds_a_descriptor_and_tells_its_target():
    before = Holdings()
    ours, theirs = socket.socketpair()
    assert leaked_since(before, PATIENCE) == ["descriptor socket (+2)"]
    ours.close()
    theirs.close()


def test_takes_a_descriptor_for_another_of_its_kind():
    read, write = os.pipe()
    before = Holdings()
    again = os.pipe()
    os.close(read)
    os.close(write)
    assert leaked_since(before, PATIENCE) == []
    for fd in again:
        os.close(fd)


def test_finds_shared_memory():
    before = Holdings()
    block = shared_memory.SharedMemory(create=True, size=100)
    assert f"/dev/shm/{block.name.lstrip('/')} (+1)" in leaked_since(before, PATIENCE)
    block.close()
    block.unlink()


def test_finds_the_shared_memory_of_a_child():
    before = Holdings()
    source = (
        "from multiprocessing import shared_memory as m\n"
        "block = m.SharedMemory(create=True, size=100)\n"
        "print(block.name, flush=True); input(); block.close(); block.unlink()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        name = program.stdout.readline().strip()
        assert f"/dev/shm/{name} (+1)" in leaked_since(before, PATIENCE)
        program.stdin.write("\n")


def test_finds_a_named_semaphore():
    before = Holdings()
    # CPython unlinks its semaphores at once, so this is what a forgotten one looks like.
    path = Path("/dev/shm/sem.phalanx-test")
    path.touch()
    try:
        assert leaked_since(before, PATIENCE) == [f"{path} (+1)"]
    finally:
        path.unlink()


def test_a_leaking_test_fails(tmp_path):
    here = Path(__file__).parent
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(here)!r})\n"
        f"exec(compile(open({str(here / 'conftest.py')!r}).read(), 'conftest.py', 'exec'))\n"
        "SETTLE = 0.1\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import os, subprocess, time, pytest\n"
        "def test_leaks_a_process(): subprocess.Popen(['sleep', '62'])\n"
        "def test_leaks_nothing(): pass\n"
        "@pytest.mark.time_limit(0.2)\n"
        "def test_hangs(): time.sleep(60)\n"
    )
    # Plugins of the outer run are no part of this.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "left behind:\n" in run.stdout
    assert "sleep 62" in run.stdout
    assert "test_leaks_a_process PASSED" in run.stdout
    assert "test_leaks_nothing PASSED" in run.stdout
    assert "TookTooLong: test_it.py::test_hangs took longer than 0.2 seconds" in run.stdout
    assert "1 failed, 2 passed, 1 error" in run.stdout
