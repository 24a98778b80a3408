"""What a task has started ends with its worker where that is asked for, and only there."""

import os
import signal
import subprocess
import sys
import threading

import phalanx
import pytest
from tasks import is_running, note_and_wait, pid_of_worker, wait_until


def start_program(log, detached=False):
    """Start a program that goes on for long, and say which process it is."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = subprocess.Popen(command, start_new_session=detached)
    log.add(program.pid)
    return program.pid


def start_program_and_hang(log):
    start_program(log)
    threading.Event().wait()


def start_programs_and_hang(log):
    """Start programs as fast as it can, until it is killed."""
    while True:
        log.add(subprocess.Popen(["/bin/sleep", "600"]).pid)


def fork_and_hang(log):
    """A child that has all descriptors of the worker, too."""
    pid = os.fork()
    if pid:
        log.add(pid)
    threading.Event().wait()


def fork_twice_and_hang(log):
    """A child whose parent has ended, so that it is the worker's no more."""
    if os.fork() == 0:
        if os.fork() == 0:
            log.add(os.getpid())
            threading.Event().wait()
        os._exit(0)
    os.wait()
    threading.Event().wait()


def pool_and_hang(log):
    """A pool with a program of its own, in a worker."""
    with phalanx.Pool(1) as pool:
        log.add(pool.apply(pid_of_worker))
        pool.apply(start_program_and_hang, (log,))


HANG = [start_program_and_hang, fork_and_hang, fork_twice_and_hang]


def noted(log, number=1):
    wait_until(lambda: len(log.lines()) >= number, "the processes that tasks start")
    return [int(line) for line in log.lines()]


def end(pids):
    wait_until(lambda: not any(map(is_running, pids)), "the ends of what tasks have started")


@pytest.mark.parametrize("task", HANG)
@pytest.mark.parametrize("how", ["terminate", "kill", "segfault"])
def test_what_a_task_has_started_ends_with_its_worker(ctx, log, task, how):
    with ctx.Pool(1, kill_tree=True) as pool:
        result = pool.apply_async(task, (log,))
        started = noted(log)
        assert all(map(is_running, started))
        worker = pool._pool[0].pid
        if how == "terminate":
            pool.terminate()
        else:
            os.kill(worker, signal.SIGKILL if how == "kill" else signal.SIGSEGV)
            with pytest.raises(phalanx.WorkerDied):
                result.get()
        end(started)


# A fork copies descriptors first and memory later, and other threads go on meanwhile. ctypes lets
# go of the GIL, unlike os.fork: so this one falls between any two lines of the engine.
LIFELINES = """
import ctypes, os, select, signal, sys, threading
from phalanx import _phalanx

ROUNDS, KEPT = 20_000, 200
fork, children, over = ctypes.CDLL(None).fork, [], threading.Event()

def end_one():
    child = children.pop(0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

def forks():
    while not over.is_set():
        children.append(fork() or signal.pause())
        if len(children) > KEPT:
            end_one()

thread = threading.Thread(target=forks)
thread.start()
engine, left, poll = _phalanx.Pool(1), 0, select.poll()
for _ in range(ROUNDS):
    seating = engine.prepare(0, False)
    lifeline = os.dup(seating.lifeline)
    del seating
    poll.register(lifeline)
    left += not poll.poll(50)  # shorter than a child's life
    poll.unregister(lifeline)
    os.close(lifeline)
over.set()
thread.join()
while children:
    end_one()
sys.exit(f"{left} lifelines are held by children" if left else 0)
"""


def test_no_child_that_is_forked_meanwhile_holds_a_workers_lifeline():
    subprocess.run([sys.executable, "-W", "ignore", "-c", LIFELINES], check=True)


def test_what_is_being_started_at_that_moment_ends_too(ctx, log):
    with ctx.Pool(2, kill_tree=True) as pool:
        pool.map_async(start_programs_and_hang, [log] * 2, 1)
        wait_until(lambda: len(log.lines()) > 20, "programs")
        pool.terminate()
        pool.join()
    end([int(line) for line in log.lines()])  # and conftest looks for those that were not noted


def test_other_workers_and_what_they_have_started_go_on(ctx, log):
    with ctx.Pool(2, kill_tree=True) as pool:
        results = [pool.apply_async(start_program_and_hang, (log,)) for _ in range(2)]
        victim, kept = noted(log, 2)
        os.kill(os.getpgid(victim), signal.SIGKILL)
        end([victim])
        wait_until(lambda: any(result.ready() for result in results), "the news")
        assert not all(result.ready() for result in results)
        assert is_running(kept)
    end([kept])


def test_what_tasks_have_started_ends_when_the_workers_leave(ctx, log):
    with ctx.Pool(1, kill_tree=True, maxtasksperchild=1) as pool:
        first = pool.apply(start_program, (log,))
        end([first])
        second = pool.apply(start_program, (log,))
        pool.close()
        pool.join()
        end([second])


def own_a_pool(log):
    with phalanx.Pool(1, kill_tree=True) as pool:
        pool.apply(start_program_and_hang, (log,))


def own_a_pool_of_forks(log):
    with phalanx.Pool(1, kill_tree=True) as pool:
        pool.apply(fork_and_hang, (log,))


@pytest.mark.parametrize("owner", [own_a_pool, own_a_pool_of_forks])
def test_what_a_task_has_started_ends_when_the_parent_is_killed(ctx, log, owner):
    process = ctx.Process(target=owner, args=(log,))
    process.start()
    started = noted(log)
    process.kill()
    process.join()
    end(started)


def test_a_pool_in_a_task_ends_with_its_tasks_and_their_programs(ctx, log):
    with ctx.Pool(1, kill_tree=True) as pool:
        pool.apply_async(pool_and_hang, (log,))
        started = noted(log, 2)
        pool.terminate()
        end(started)


def test_what_has_left_the_group_is_left_alone(ctx, log):
    with ctx.Pool(1, kill_tree=True) as pool:
        program = pool.apply(start_program, (log, True))
    assert is_running(program)
    os.kill(program, signal.SIGKILL)


def test_without_it_nothing_is_killed_but_workers(ctx, log):
    with ctx.Pool(1) as pool:
        program = pool.apply(start_program, (log,))
        assert pool.apply(os.getpgid, (0,)) == os.getpgid(0)
    assert is_running(program)
    os.kill(program, signal.SIGKILL)


def test_the_parents_own_group_is_not_touched(ctx, log):
    bystander = subprocess.Popen(["/bin/sleep", "600"])
    with ctx.Pool(2, kill_tree=True) as pool:
        running = pool.apply_async(note_and_wait, (log, "started", "never"))
        wait_until(log.lines, "the task")
        pool.terminate()
        pool.join()
        assert running.ready()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
