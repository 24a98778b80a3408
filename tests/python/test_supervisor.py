"""A supervisor keeps its children running, in order, and says when it cannot."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import phalanx
import pytest
from phalanx import ChildSpec, Supervisor, SupervisorFailed
from tasks import DEADLINE, fail, is_running, nothing, sleep, wait_until


def note_and_sleep(log, word):
    """A child that says that it has begun, and its process."""
    log.add(f"{word} {os.getpid()}")
    time.sleep(600)


def note_and_start(log, detached=False):
    """A child that starts a program, and says which process that is."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = subprocess.Popen(command, start_new_session=detached)
    log.add(program.pid)
    program.wait()


def note_and_fork(log):
    """A child with a child of its own that holds all its descriptors, too."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    log.add(pid)
    time.sleep(600)


def ignore_sigterm(log):
    signal.signal(signal.SIGTERM, lambda *_: log.add("told"))
    log.add("deaf")
    while True:
        time.sleep(600)


def exit_with(code):
    sys.exit(code)


def child(name, log, **more):
    return ChildSpec(name=name, target=note_and_sleep, args=(log, name), **more)


def pids(supervisor):
    """The processes of all children, when all run."""
    running = lambda: all(it.status == "running" for it in supervisor.children())  # noqa: E731
    wait_until(running, "all to run")
    return [it.pid for it in supervisor.children()]


@pytest.fixture
def family(ctx, log):
    """A maker of supervisors of "a", "b" and "c", with each start method."""

    def make(strategy="one_for_one", intensity=3):
        children = [child(name, log) for name in "abc"]
        return Supervisor(children, strategy=strategy, intensity=intensity, period=600, context=ctx)

    return make


@pytest.mark.parametrize(
    ("strategy", "restarted"),
    [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")],
)
def test_each_strategy_restarts_those_that_it_says(family, strategy, restarted):
    with family(strategy) as supervisor:
        before = pids(supervisor)
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: supervisor.children()[1].restarts == 1, "the restart")
        after = pids(supervisor)
        changed = [name for name, old, new in zip("abc", before, after, strict=True) if old != new]
        assert "".join(changed) == restarted
        assert supervisor.children()[1].exitcode == -signal.SIGKILL
    assert not any(map(is_running, before + after))


def test_children_stop_in_reverse_order_and_start_in_order(family, log):
    with family("one_for_all") as supervisor:
        wait_until(lambda: len(log.lines()) == 3, "all to begin")
        started = sorted(pids(supervisor))
        assert started == pids(supervisor) or os.getpid() > started[0]  # numbers may wrap
        supervisor.terminate_child("c")
        assert [it.status for it in supervisor.children()] == ["running", "running", "down"]
    assert [it.exitcode for it in supervisor.children()] == [-signal.SIGTERM] * 3


def test_too_many_deaths_end_all_and_are_told(family, log):
    with pytest.raises(SupervisorFailed) as caught, family(intensity=2) as supervisor:  # noqa: PT012
        for restarts in (1, 2):
            os.kill(pids(supervisor)[0], signal.SIGKILL)
            wait_until(lambda n=restarts: supervisor.children()[0].restarts == n, "the restart")
        others = pids(supervisor)
        os.kill(others[2], signal.SIGTERM)
        with pytest.raises(SupervisorFailed):
            supervisor.join(DEADLINE)
        assert supervisor.count() == 0
        with pytest.raises(SupervisorFailed):
            supervisor.restart_child("a")
    deaths = caught.value.deaths
    assert [(death.name, death.exitcode) for death in deaths] == [
        ("a", -signal.SIGKILL),
        ("a", -signal.SIGKILL),
        ("c", -signal.SIGTERM),
    ]
    assert deaths[-1].pid == others[2]
    assert "more than 2 restarts in 600 s" in str(caught.value)
    assert "was killed by SIGTERM" in str(caught.value)
    assert not any(map(is_running, others))


def test_what_a_child_raised_is_told_with_its_traceback(ctx, capfd):
    spec = ChildSpec(name="unlucky", target=fail, args=("no such luck",))
    with (
        pytest.raises(SupervisorFailed, match="no such luck") as caught,
        Supervisor([spec], intensity=0, context=ctx, name="fate") as supervisor,
    ):
        supervisor.join(DEADLINE)
    [death] = caught.value.deaths
    assert (death.name, death.exitcode) == ("unlucky", 1)
    assert "tasks.py" in death.traceback
    assert death.traceback.endswith("ValueError: no such luck\n")
    assert "supervisor `fate`" in str(caught.value)
    assert "Traceback" in capfd.readouterr().err  # as of any process


def test_transient_and_temporary_children_end_for_good(ctx):
    children = [
        ChildSpec(name="transient", target=nothing, restart="transient"),
        ChildSpec(name="temporary", target=exit_with, args=(3,), restart="temporary"),
    ]
    with Supervisor(children, context=ctx) as supervisor:
        assert supervisor.join(DEADLINE)
        [left] = supervisor.children()
        assert left == ("transient", "down", None, 0, 0)


def test_children_are_added_terminated_restarted_and_deleted_by_name(family, log):
    with family() as supervisor:
        [_, b, _] = pids(supervisor)
        assert supervisor.terminate_child("b")
        assert not is_running(b)
        assert supervisor.count() == 2
        with pytest.raises(ValueError, match="already"):
            supervisor.start_child(child("b", log))
        supervisor.restart_child("b")
        with pytest.raises(ValueError, match="terminate it first"):
            supervisor.delete_child("b")
        with pytest.raises(ValueError, match="runs"):
            supervisor.restart_child("b")
        supervisor.terminate_child("b")
        supervisor.delete_child("b")
        with pytest.raises(ValueError, match="no child `b`"):
            supervisor.terminate_child("b")
        supervisor.start_child(child("b", log))
        assert [it.name for it in supervisor.children()] == ["a", "c", "b"]


def test_one_that_ignores_sigterm_is_killed_when_its_time_is_over(ctx, log):
    spec = ChildSpec(name="deaf", target=ignore_sigterm, args=(log,), shutdown=0.1)
    with Supervisor([spec], context=ctx) as supervisor:
        wait_until(log.lines, "it to begin")
        started = time.monotonic()
    assert time.monotonic() - started >= 0.1
    wait_until(lambda: log.lines() == ["deaf", "told"], "it to have been told")
    assert supervisor.children()[0].exitcode == -signal.SIGKILL


def test_one_that_is_to_end_at_once_gets_no_sigterm(ctx, log):
    spec = ChildSpec(name="deaf", target=ignore_sigterm, args=(log,), shutdown=0)
    with Supervisor([spec], context=ctx):
        wait_until(log.lines, "it to begin")
    assert log.lines() == ["deaf"]


def test_a_child_that_cannot_be_started_raises_why_and_is_forgotten():
    context = phalanx.get_context("spawn")
    spec = ChildSpec(name="lock", target=sleep, args=(threading.Lock(),))
    with Supervisor(context=context) as supervisor:
        for _ in range(2):
            with pytest.raises(TypeError, match="pickle"):
                supervisor.start_child(spec)
        assert supervisor.children() == []
    with pytest.raises(TypeError, match="pickle"):
        Supervisor([ChildSpec(name="a", target=sleep, args=(60,)), spec], context=context).start()


def test_a_child_may_have_children_also_where_the_supervisor_is_in_a_daemon(ctx, log):
    process = ctx.Process(target=supervise_in_a_daemon, args=(log,), daemon=True)
    process.start()
    wait_until(lambda: "square 9" in log.lines(), "the child's own child")
    process.join()
    assert process.exitcode == 0


def supervise_in_a_daemon(log):
    spec = ChildSpec(name="parent", target=have_a_child, args=(log,), restart="temporary")
    with Supervisor([spec]) as supervisor:
        supervisor.join()


def have_a_child(log):
    process = phalanx.Process(target=log.add, args=("square 9",))
    process.start()
    process.join()


def supervise(log, kill_tree=False):
    """A process that supervises until somebody kills it."""
    if kill_tree:
        target = note_and_fork
        specs = [ChildSpec(name="parent", target=target, args=(log,), kill_tree=True)]
    else:
        specs = [ChildSpec(name=name, target=note_and_sleep, args=(log, name)) for name in "ab"]
    with Supervisor(specs) as supervisor:
        supervisor.join()


@pytest.mark.parametrize("kill_tree", [False, True])
def test_children_end_with_the_process_that_supervises(ctx, log, kill_tree):
    process = ctx.Process(target=supervise, args=(log, kill_tree))
    process.start()
    wait_until(lambda: len(log.lines()) == 2 - kill_tree, "the children")
    processes = [int(line.split()[-1]) for line in log.lines()]
    assert all(map(is_running, processes))
    process.kill()
    process.join()
    wait_until(lambda: not any(map(is_running, processes)), "the children's ends")


@pytest.mark.parametrize("target", [note_and_start, note_and_fork])
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "stop"])
def test_kill_tree_ends_what_a_child_had_started(ctx, log, target, end):
    spec = ChildSpec(name="parent", target=target, args=(log,), kill_tree=True, restart="temporary")
    with Supervisor([spec], context=ctx) as supervisor:
        wait_until(log.lines, "its program")
        program = int(log.lines()[0])
        assert is_running(program)
        if end != "stop":
            os.kill(pids(supervisor)[0], signal.Signals[end])
            wait_until(lambda: not is_running(program), "the program's end")
    wait_until(lambda: not is_running(program), "the program's end")


def test_without_kill_tree_what_a_child_had_started_goes_on(ctx, log):
    spec = ChildSpec(name="parent", target=note_and_start, args=(log,))
    with Supervisor([spec], context=ctx):
        wait_until(log.lines, "its program")
    program = int(log.lines()[0])
    assert is_running(program)
    os.kill(program, signal.SIGKILL)


def test_kill_tree_leaves_alone_what_has_left_the_group(ctx, log):
    spec = ChildSpec(name="parent", target=note_and_start, args=(log, True), kill_tree=True)
    with Supervisor([spec], context=ctx):
        wait_until(log.lines, "its program")
    program = int(log.lines()[0])
    assert is_running(program)
    os.kill(program, signal.SIGKILL)


def test_a_terminate_that_takes_too_long_says_so_and_goes_on(family):
    with family() as supervisor:
        stopped = pids(supervisor)[1]
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: is_stopped(stopped), "it to be stopped")
        assert not supervisor.terminate_child("b", timeout=0.05)
        assert supervisor.children()[1].status == "stopping"
        os.kill(stopped, signal.SIGCONT)
        assert supervisor.terminate_child("b", timeout=DEADLINE)


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_supervisor_that_is_forgotten_stops_its_children(log):
    supervisor = Supervisor([child("a", log)], context=phalanx.get_context("fork")).start()
    [pid] = pids(supervisor)
    with pytest.warns(ResourceWarning, match="was not stopped"):  # noqa: PT031
        del supervisor
        gc.collect()
    assert not is_running(pid)


def test_a_program_that_forgets_its_supervisor_ends(tmp_path, method):
    script = tmp_path / "forgets.py"
    script.write_text(
        textwrap.dedent(f"""
        import time, phalanx

        if __name__ == "__main__":
            phalanx.set_start_method({method!r})
            spec = phalanx.ChildSpec(name="sleeper", target=time.sleep, args=(600,))
            supervisor = phalanx.Supervisor([spec]).start()
            print(supervisor.children()[0].pid)
        """)
    )
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=DEADLINE * 2
    )
    assert not is_running(int(run.stdout))


def test_in_a_forked_child_it_raises(log):
    context = phalanx.get_context("fork")
    with Supervisor([child("a", log)], context=context) as supervisor:
        process = context.Process(target=use_of_another, args=(supervisor, log))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert supervisor.count() == 1
    assert any("forked" in line for line in log.lines())


def use_of_another(supervisor, log):
    try:
        supervisor.children()
    except ValueError as error:
        log.add(error)


def test_one_that_was_not_started_says_so(log):
    supervisor = Supervisor()
    with pytest.raises(ValueError, match="with"):
        supervisor.start_child(child("a", log))
    with pytest.raises(ValueError, match="strategy"):
        Supervisor(strategy="none_for_all")  # type: ignore[arg-type]


def test_the_failure_pickles():
    failure = SupervisorFailed("it failed", [("a", 1, -9, "")])
    again = phalanx.reduction.ForkingPickler.loads(phalanx.reduction.ForkingPickler.dumps(failure))
    assert (str(again), again.deaths) == ("it failed", failure.deaths)


def test_threads_share_one_supervisor(log):
    context = phalanx.get_context("fork")
    with Supervisor(context=context) as supervisor:

        def work(number):
            for round_ in range(5):
                name = f"{number}.{round_}"
                supervisor.start_child(child(name, log))
                supervisor.terminate_child(name)
                supervisor.delete_child(name)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert supervisor.children() == []
