"""Calls leave no memory behind, however often they are repeated."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable

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
