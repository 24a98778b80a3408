"""How programs end that have pools: nothing hangs, nothing stays, and what is dropped is said."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import warnings

import phalanx
import pytest
from tasks import identity, sleep, square

DROPPED = r"the program has ended, and with it {} tasks of a pool of 2 workers"

ENDS = {
    "a forgotten close": "pool = ctx.Pool(2)\nprint(pool.map(abs, [-1]))",
    "a with block": "with ctx.Pool(2) as pool: print(pool.map(abs, [-1]))",
    "close without join": "pool = ctx.Pool(2)\nprint(pool.map(abs, [-1]))\npool.close()",
    "a half-read imap": "pool = ctx.Pool(2)\nprint([next(pool.imap(abs, iter([-1] * 10**6)))])",
    "a cycle through a pool": "class Owner: pass\nowner = Owner()\nowner.pool = ctx.Pool(2)\n"
    "owner.me = owner\nprint(owner.pool.map(abs, [-1]))",
    "an atexit handler of earlier": "import atexit\n"
    "atexit.register(lambda: print(later() and [1]))\n"
    "def later():\n"
    "    try: pool.map(abs, [-1])\n"
    "    except ValueError as error: return 'terminated' in str(error)\n"
    "pool = ctx.Pool(2)",
    "an atexit handler of later": "import atexit\npool = ctx.Pool(2)\n"
    "atexit.register(lambda: print(pool.map(abs, [-1])))",
    "a thread that goes on": "pool = ctx.Pool(2)\ndef go_on():\n    time.sleep(0.2)\n"
    "    print(pool.map(abs, [-1]))\nthreading.Thread(target=go_on).start()",
}


@pytest.mark.parametrize("body", ENDS.values(), ids=ENDS)
def test_a_program_ends_in_peace(run, body):
    program = run(body)
    assert program.end() == 0
    assert program.errors() == ""
    assert program.output == "[1]\n"


@pytest.mark.parametrize(("how", "code"), [("", 0), ("\nsys.exit(4)", 4)])
def test_what_is_dropped_at_the_end_is_said_in_one_line(run, how, code):
    program = run(f"pool = ctx.Pool(2)\nresult = pool.map_async(long, range(5), 1)\nwait(){how}")
    assert program.end() == code
    (line,) = program.errors().splitlines()
    assert DROPPED.format(5) in line


def test_whoever_leaves_by_os_exit_takes_the_workers_along(run):
    program = run("pool = ctx.Pool(2)\npool.map_async(long, range(5), 1)\nwait()\nos._exit(3)")
    assert program.end() == 3
    assert program.errors() == ""


def test_an_exception_in_a_with_block_is_told_alone(run):
    program = run(
        "with ctx.Pool(2) as pool:\n"
        "    pool.map_async(long, range(5), 1)\n"
        "    wait()\n"
        "    raise ValueError('mine')"
    )
    assert program.end() == 1
    assert program.errors().count("Traceback (most recent call last)") == 1
    assert program.errors().endswith("ValueError: mine\n")


def test_a_daemon_thread_in_a_call_holds_nobody_up(run):
    program = run(
        "pool = ctx.Pool(2)\n"
        "threading.Thread(target=pool.map, args=(long, range(5)), daemon=True).start()\n"
        "wait()"
    )
    assert program.end() == 0
    assert DROPPED.format("")[:20] in program.errors()


def test_a_pool_of_the_parent_says_so_in_a_forked_child():
    with phalanx.get_context("fork").Pool(2) as pool:
        pool.map(square, range(4))
        result = pool.apply_async(sleep, (0.5,))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            told = []
            for use in (
                lambda: pool.map(square, [1]),
                lambda: pool.apply_async(square, (1,)),
                result.get,
                result.cancel,
                pool.stats,
                pool.cancel_all,
            ):
                try:
                    use()
                    told.append("nothing")
                except ValueError as error:
                    told.append("forked from" in str(error))
            os.write(writer, repr(told).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            assert pipe.read() == repr([True] * 6)
        assert os.waitpid(pid, 0)[1] == 0
        assert pool.apply(square, (3,)) == 9


def test_a_child_forked_while_others_submit_has_pools_of_its_own():
    with phalanx.get_context("fork").Pool(2) as pool:
        over = threading.Event()

        def submit() -> None:
            while not over.is_set():
                pool.map(square, range(50), 1)

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(20)  # a deadlock is a death
                    with phalanx.get_context("fork").Pool(1) as own:
                        os._exit(0 if own.map(square, range(9), 1)[8] == 64 else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            over.set()
            for thread in threads:
                thread.join()


def test_many_threads_use_one_pool(pool):
    results: dict[int, list[int]] = {}

    def use(number: int) -> None:
        results[number] = pool.map(square, range(number, number + 100), 1)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [x * x for x in range(n, n + 100)] for n in range(20)}


def test_asyncio_waits_for_results(pool):
    async def get(number: int) -> object:
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def tell(set_it, value):
            loop.call_soon_threadsafe(set_it, value)

        pool.apply_async(
            square,
            (number,),
            callback=lambda value: tell(future.set_result, value),
            error_callback=lambda error: tell(future.set_exception, error),
        )
        return await future

    async def main() -> list[object]:
        in_threads = [asyncio.to_thread(pool.apply, identity, (n,)) for n in range(20)]
        return await asyncio.gather(*(get(n) for n in range(200)), *in_threads)

    assert asyncio.run(main()) == [n * n for n in range(200)] + list(range(20))


def test_a_collected_pool_takes_its_workers_along(ctx):
    pool = ctx.Pool(2)
    assert pool.apply(square, (3,)) == 9
    processes = pool._pool
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # which would keep what it is about
        del pool
    for process in processes:
        process.join()


def test_workers_end_though_their_parent_was_killed_at_once(ctx, tmp_path):
    code = (
        "import os, signal, sys, phalanx\n"
        "pool = phalanx.get_context(sys.argv[1]).Pool(2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    run = subprocess.run(
        [sys.executable, script, ctx.get_start_method()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=20,  # it ends when the last has closed its output
    )
    assert run.returncode in {-signal.SIGKILL, 0, 1}
