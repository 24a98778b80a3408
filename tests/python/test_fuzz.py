"""What another process wrote is input, and may be nonsense: here it is, in many ways.

Each test gives a reader hundreds of inputs that follow from one number. It must raise what it says
that it raises, and nothing else, and must not hang. ``make fuzz`` gives thousands. A failure has
the case in its message.
"""

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing import AuthenticationError
from pickle import UnpicklingError
from queue import Empty

import phalanx
import phalanx.connection as ours
import pytest
from phalanx import _phalanx
from phalanx.shared_memory import ShareableList, SharedMemory

CASES = int(os.environ.get("PHALANX_FUZZ_CASES", "300"))
SEED = int(os.environ.get("PHALANX_FUZZ_SEED", "24301"))
EXTREMES = [0, 1, 4, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1]
KEY = b"a key that both have"


class Cases:
    """Variations of valid inputs."""

    def __init__(self, name: str, valid: list[bytes]) -> None:
        self._name, self._valid = name, valid
        self._random = random.Random(f"{SEED} {name}")

    def check(self, reader: Callable[[bytes], None]) -> None:
        """Call the reader with each, and print how many there were."""
        began = time.monotonic()
        for case in [*self._valid, *(self._variation() for _ in range(CASES))]:
            try:
                reader(case)
            except BaseException as error:
                raise AssertionError(f"{self._name}, with {case.hex()}") from error
        took, number = time.monotonic() - began, CASES + len(self._valid)
        print(f"\nfuzz: {self._name}: {number} cases, seed {SEED}, {took:.1f} s")

    def _variation(self) -> bytes:
        chance = self._random
        if chance.random() < 0.1:
            return chance.randbytes(chance.randrange(64))
        case = bytearray(chance.choice(self._valid))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(case) + 1)
            match chance.randrange(5):
                case 0:
                    del case[at:]
                case 1:
                    case[at:at] = chance.randbytes(chance.randrange(20))
                case 2:
                    case[at : at + 1] = chance.randbytes(1)
                case 3:
                    word = chance.choice(EXTREMES).to_bytes(8, chance.choice(["little", "big"]))
                    width = chance.choice([1, 2, 4, 8])
                    at -= at % width
                    case[at : at + width] = word[-width:]
                case _:
                    case[at:] = chance.choice(self._valid)[at:]
        return bytes(case)


def message(body: bytes) -> bytes:
    """A message as it is on a connection."""
    return struct.pack("!i", len(body)) + body


@contextlib.contextmanager
def connection_that_says(said: bytes):
    """A connection whose other end has said all that it will say, and listens still."""
    near, far = socket.socketpair()
    with far, ours.Connection(near.detach()) as connection:
        far.sendall(said)
        far.shutdown(socket.SHUT_WR)
        yield connection


def test_a_connection_gives_messages_or_an_error():
    def receive(case):
        with connection_that_says(case) as connection:
            received = 0
            with contextlib.suppress(EOFError, OSError):
                while True:
                    received += len(connection.recv_bytes(1 << 20)) + 4
            assert received <= len(case)

    valid = [message(b"hello") + message(b""), struct.pack("!iQ", -1, 5) + b"hello"]
    Cases("Connection.recv_bytes", valid).check(receive)


@pytest.mark.parametrize("side", ["answer_challenge", "deliver_challenge"])
def test_nobody_is_let_in_by_nonsense(side):
    def meet(case):
        with connection_that_says(case) as connection:
            try:
                getattr(ours, side)(connection, KEY)
            except (AuthenticationError, EOFError, OSError, ValueError):
                return
        # Whoever is welcome was told so, which anybody can say; nobody has answered us.
        assert side == "answer_challenge"
        assert b"#WELCOME#" in case

    challenges = [b"#CHALLENGE#" + bytes(20), b"#CHALLENGE#{sha256}" + bytes(40)]
    answers = [b"{sha256}" + bytes(32), bytes(16), b"#WELCOME#", b"#FAILURE#"]
    valid = [message(challenges[1]) + message(answer) for answer in answers]
    Cases(side, [*valid, *map(message, challenges + answers)]).check(meet)


def test_an_offer_of_a_line_is_taken_or_refused():
    with open(os.memfd_create("fuzz"), "wb") as memory, open(os.devnull, "rb") as device:
        offered = [[], [memory.fileno()], [device.fileno()]]

        def accept(case):
            near, far = socket.socketpair()
            with near, far:
                socket.send_fds(far, [case or b"?"], offered[case[-1] % 3 if case else 0])
                with pytest.raises((OSError, RuntimeError)):
                    _phalanx.Line.accept(near.fileno())

        Cases("Line.accept", [b"\1\1", b"\1\2", b"\0\1", b"\1\0"]).check(accept)


LOCKS = (64, 128)  # of both ends: one that a living process holds is waited for
FRAMES = 0xF000  # from here on: not where it is, but in what was put
# Nonsense for the engine, for a text, for pickle; and an end before there is an item.
EXPECTED = (RuntimeError, OSError, UnicodeDecodeError, UnpicklingError, EOFError, Empty)
WRITTEN = [b"bytes", "text \N{CRAB}", 1 << 40, b"long " * 20_000]


def test_a_queue_gives_items_or_an_error():
    """The words of a queue, then its tables, then what was put; see ``channel/stream.rs``."""

    def get(case):
        queue = phalanx.Queue()
        memory, _ = queue._descriptors()
        for item in WRITTEN:
            queue.put(item)
        size = os.fstat(memory).st_size
        segments = 1 << (size >> 16).bit_length() - 1
        for start in range(0, len(case) - 9, 10):
            at, word = struct.unpack_from("=HQ", case, start)
            at += size - (segments << 16) - FRAMES if at >= FRAMES else 0
            if not any(lock - 8 < at < lock + 8 for lock in LOCKS):
                os.pwrite(memory, struct.pack("=Q", word), at)
        with contextlib.suppress(*EXPECTED):
            for _ in range(10):
                queue.get_nowait()
        queue.close()

    places = [(at, word) for at in range(64, 200, 8) for word in (0, 1 << 30)]
    places += [(FRAMES + 8 * at, word) for at in range(8) for word in (1, 5, 1 << 50)]
    Cases("Queue.get", [struct.pack("=HQ", *place) for place in places]).check(get)


def test_a_list_is_attached_to_or_there_is_none():
    def attach(case):
        block = SharedMemory(create=True, size=len(case) + 1)
        block.buf[: len(case)] = case
        try:
            with contextlib.suppress(ValueError):
                attached = ShareableList(name=block.name)
                for at in range(attached._list_len):
                    # An item of which nothing makes sense: what CPython raises.
                    with contextlib.suppress(struct.error, ValueError, KeyError, AttributeError):
                        attached[at]
                attached.shm.close()
        finally:
            block.close()
            block.unlink()

    model = ShareableList([1, 2.5, "text", b"bytes", None, True])
    with contextlib.closing(model.shm):
        whole = bytes(model.shm.buf)
        model.shm.unlink()
    small = [struct.pack("q", 1) + bytes(size) for size in (0, 9, 12, 20)]
    Cases("ShareableList", [whole, *small]).check(attach)
