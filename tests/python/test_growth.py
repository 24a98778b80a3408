"""Calls leave no memory behind, however often they are repeated."""

import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import phalanx
import pytest

FEW = 500  # blocks that come and go: caches, the interpreter's own


def fail(number: int) -> None:
    raise ValueError(number)


def raise_here(pool: "phalanx.pool.Pool") -> None:
    with contextlib.suppress(ValueError):
        pool.map(fail, range(1000, 1100), 7)


CALLS = {
    "apply": lambda pool: [pool.apply(divmod, (number, 7)) for number in range(1000, 1100)],
    "map": lambda pool: pool.map(abs, range(1000, 3000)),
    "map in chunks": lambda pool: pool.map(abs, range(1000, 3000), 7),
    "map one by one": lambda pool: pool.map(abs, list(range(1000, 3000)), 1),
    "starmap": lambda pool: pool.starmap(divmod, [(n, 7) for n in range(1000, 2000)], 5),
    "imap": lambda pool: list(pool.imap(abs, range(1000, 2000))),
    "imap in chunks": lambda pool: list(pool.imap(abs, iter(range(1000, 2000)), 7)),
    "failures": raise_here,
    "cancelled": lambda pool: pool.map_async(abs, range(1000, 3000), 7).cancel(),
    "large": lambda pool: pool.apply(len, (bytes(1 << 20),)),
}


def grown(call: Callable[[], object]) -> int:
    """How many blocks of memory there are more after some calls than after the first ones."""
    for _ in range(5):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(20):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_a_pool_keep_nothing(name):
    with phalanx.get_context("fork").Pool(2) as pool:
        pool.apply(abs, (-1,))
        assert grown(lambda: CALLS[name](pool)) < FEW


def test_messages_keep_nothing():
    here, there = phalanx.Pipe()

    def exchange() -> None:
        sender = threading.Thread(target=there.send_bytes, args=(bytes(8 << 20),))
        sender.start()
        assert here.recv_bytes_into(bytearray(8 << 20)) == 8 << 20
        sender.join()
        here.send(list(range(1000, 2000)))
        assert len(there.recv()) == 1000

    with here, there:
        assert grown(exchange) < FEW


def test_queues_keep_nothing():
    queue = phalanx.Queue()

    def exchange() -> None:
        for number in range(1000, 1500):
            queue.put((number, "text"))
        for _ in range(500):
            queue.get()

    assert grown(exchange) < FEW
    queue.close()
    queue.join_thread()


RESIDENT = """\
import gc, os, sys, time
import phalanx

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def falls_to(most, measure=resident, seconds=30):
    deadline = time.monotonic() + seconds
    while measure() > most and time.monotonic() < deadline:
        time.sleep(0.05)
    return measure() <= most

if __name__ == "__main__":
    ctx = phalanx.get_context(sys.argv[1])
    MIB = 1 << 20
"""


def run_by_itself(tmp_path: Path, method: str, body: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(RESIDENT + textwrap.indent(textwrap.dedent(body), "    "))
    done = subprocess.run(
        [sys.executable, script, method], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_tasks_that_wait_take_little_memory_and_give_it_back(tmp_path):
    run_by_itself(
        tmp_path,
        "forkserver",
        """
        COUNT = 200_000
        with ctx.Pool(1) as pool:
            pool.apply(abs, (1,))
            long = pool.apply_async(time.sleep, (600,))
            before = resident()
            results = [pool.apply_async(abs, (n,)) for n in range(COUNT)]
            each = (resident() - before) / COUNT - sys.getsizeof(results[0])
            assert each < 400, f"{each} bytes a task"
            long.cancel()
            assert [result.get() for result in results] == list(range(COUNT))
            del results
            gc.collect()
            assert falls_to(before + 10 * MIB), (resident() - before) / MIB
        """,
    )


def test_an_input_without_an_end_takes_no_memory(tmp_path):
    run_by_itself(
        tmp_path,
        "forkserver",
        """
        with ctx.Pool(2) as pool:
            assert sum(pool.imap_unordered(abs, iter(range(10_000)))) > 0
            before, most = resident(), 0
            for n, _ in enumerate(pool.imap_unordered(abs, (n for n in range(1_000_000)))):
                if n % 10_000 == 0:
                    most = max(most, resident())
            assert n == 999_999
            assert most < before + 64 * MIB, (most - before) / MIB
        """,
    )


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_pools_that_come_and_go_leave_nothing(tmp_path, method):
    run_by_itself(
        tmp_path,
        method,
        """
        def life():
            with ctx.Pool(1) as pool:
                assert pool.apply(abs, (-1,)) == 1
                pool.close()
                pool.join()

        for _ in range(20):
            life()
        before, open_before = resident(), descriptors()
        for _ in range(200):
            life()
        # The last pool's thread may be on its way out.
        assert falls_to(open_before, descriptors), descriptors()
        assert falls_to(before + 4 * MIB), (resident() - before) / MIB
        """,
    )
