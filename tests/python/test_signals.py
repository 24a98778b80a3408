"""Signals from outside: Ctrl-C in a terminal reaches a program and all its processes at once."""

import os
import signal
import time

import pytest

PLACES = {
    "map": "with ctx.Pool(2) as pool: pool.map(long, range(4), 1)",
    "starmap_async": "with ctx.Pool(2) as pool: pool.starmap_async(long, [()] * 4).get()",
    "get": "with ctx.Pool(2) as pool: pool.apply_async(long).get()",
    "wait": "with ctx.Pool(2) as pool: pool.apply_async(long).wait()",
    "imap": "with ctx.Pool(2) as pool: list(pool.imap(long, range(100)))",
    "join": "pool = ctx.Pool(2)\npool.apply_async(long)\npool.close()\npool.join()",
    "queue": "with ctx.Pool(2) as pool:\n    queue = ctx.Queue()\n    say()\n    queue.get()",
    "lock": "with ctx.Pool(2) as pool:\n    lock = ctx.Lock()\n    lock.acquire()\n    say()\n"
    "    lock.acquire()",
    "event": "with ctx.Pool(2) as pool:\n    say()\n    ctx.Event().wait()",
    "with": "with ctx.Pool(2) as pool:\n    pool.map(abs, [1])\n    say()\n    time.sleep(600)",
    "no with": "pool = ctx.Pool(2)\npool.map(long, range(4), 1)",
    "callback": "with ctx.Pool(2) as pool: pool.apply_async(abs, (1,), callback=slow).get()",
    "initializer": "with ctx.Pool(2, initializer=long) as pool: pool.map(abs, range(9))",
    "kill_tree": "with ctx.Pool(2, kill_tree=True) as pool: pool.map(long, range(4), 1)",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_ctrl_c_is_one_interrupt_in_the_parent_and_the_end_of_all(run, place):
    program = run(PLACES[place])
    program.wait_for()
    start = time.monotonic()
    program.ctrl_c()
    assert program.end() == -signal.SIGINT
    assert time.monotonic() - start < 5
    errors = program.errors()
    assert errors.count("Traceback (most recent call last)") == 1, errors
    assert errors.count("KeyboardInterrupt") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


@pytest.mark.parametrize("delay", [0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3])
def test_a_ctrl_c_while_workers_start_leaves_one_traceback(run, delay):
    program = run("say()\nwith ctx.Pool(4) as pool: pool.map(long, range(8), 1)")
    program.wait_for()
    time.sleep(delay)  # whatever it is doing by then
    program.ctrl_c()
    assert program.end() == -signal.SIGINT
    errors = program.errors()
    assert errors.count("Traceback (most recent call last)") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors


def test_a_second_ctrl_c_ends_what_the_first_has_not(run):
    program = run(
        "with ctx.Pool(2) as pool:\n"
        "    try: pool.map(long, range(4), 1)\n"
        "    finally:\n"
        "        say('cleaning')\n"
        "        time.sleep(600)"
    )
    program.wait_for()
    program.ctrl_c()
    program.wait_for("cleaning")
    program.ctrl_c()
    assert program.end() == -signal.SIGINT


def test_a_caught_interrupt_leaves_a_pool_that_works(run):
    program = run(
        "with ctx.Pool(2) as pool:\n"
        "    result = pool.map_async(time.sleep, [60], 1)\n"
        "    try:\n"
        "        say()\n"
        "        result.get()\n"
        "    except KeyboardInterrupt: say('caught')\n"
        "    print(sum(pool.map(abs, range(10), 1)), flush=True)\n"
        "    result.cancel()"
    )
    program.wait_for()
    program.ctrl_c()
    program.wait_for("caught")
    program.wait_for("45")
    assert program.end() == 0
    assert program.errors() == ""


def test_sigterm_to_the_parent_ends_its_workers(run):
    program = run("with ctx.Pool(2) as pool: pool.map(long, range(4), 1)")
    program.wait_for()
    os.kill(program.pid, signal.SIGTERM)
    assert program.end() == -signal.SIGTERM
    assert program.errors() == ""


def test_a_handler_of_sigterm_ends_the_program_as_it_likes(run):
    program = run(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "with ctx.Pool(2) as pool: pool.map(long, range(4), 1)"
    )
    program.wait_for()
    os.kill(program.pid, signal.SIGTERM)
    assert program.end() == 7
    assert program.errors() == ""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGCHLD", "SIGUSR1", "SIGALRM", "SIGWINCH"])
def test_the_users_own_handlers_go_on_working(run, name):
    program = run(
        f"signal.signal(signal.{name}, lambda *_: say('handled'))\n"
        "with ctx.Pool(2) as pool:\n"
        "    result = pool.apply_async(time.sleep, (0.5,))\n"
        "    say()\n"
        "    result.get()\n"
        "    assert pool.map(abs, range(10), 1) == list(range(10))\n"
        "say('done')"
    )
    program.wait_for()
    os.kill(program.pid, getattr(signal, name))
    program.wait_for("handled")
    program.wait_for("done")
    assert program.end() == 0
    assert program.errors() == ""


@pytest.mark.parametrize("name", ["SIGCHLD", "SIGPIPE", "SIGHUP", "SIGINT", "SIGTERM"])
def test_a_program_may_ignore_signals(run, name):
    program = run(
        f"signal.signal(signal.{name}, signal.SIG_IGN)\n"
        "with ctx.Pool(2) as pool:\n"
        "    assert pool.map(abs, range(100), 1) == list(range(100))\n"
        "    try: pool.apply(os._exit, (3,))\n"
        "    except phalanx.WorkerDied: pass\n"
        "    assert pool.map(abs, range(100), 1) == list(range(100))\n"
        "process = ctx.Process(target=abs, args=(1,))\n"
        "process.start()\n"
        "process.join()\n"
        # Whoever ignores SIGCHLD has the kernel throw exit codes away.
        f"assert process.exitcode in {(0, 255) if name == 'SIGCHLD' else (0,)}\n"
        "say('done')"
    )
    program.wait_for("done")
    assert program.end() == 0
    assert program.errors() == ""


def test_a_handler_may_use_the_pool(run):
    program = run(
        "pool = ctx.Pool(2)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: say(str(pool.apply(abs, (-5,)))))\n"
        "result = pool.apply_async(time.sleep, (0.5,))\n"
        "say()\n"
        "result.get()\n"
        "for _ in range(300): pool.map(abs, range(10), 1)\n"
        "pool.close()\n"
        "pool.join()\n"
        "say('done')"
    )
    program.wait_for()
    for _ in range(5):
        os.kill(program.pid, signal.SIGUSR1)
        program.wait_for("5")
    program.wait_for("done")
    assert program.end() == 0
    assert program.errors() == ""
