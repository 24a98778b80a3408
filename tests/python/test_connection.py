"""Pipes, connections, listeners and `wait`; what deaths do to them is in test_connection_death."""

import array
import contextlib
import copy
import hmac
import multiprocessing.connection
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from pathlib import Path

import phalanx
import phalanx.connection as ours
import pytest

PATIENCE = 20.0  # seconds that anything here may take
SIZES = [0, 1, 4, 5, 16_384, 16_385, 65_536, 1 << 20, (1 << 20) + 1, 5 << 20]
PYTHONS = Path(__file__).parent.parent.parent / "tools" / "pythons.sh"


@pytest.fixture(params=[True, False], ids=["duplex", "simplex"])
def ends(request):
    """A receiving and a sending end."""
    pair = phalanx.Pipe(request.param)
    yield pair
    for end in pair:
        end.close()


@contextlib.contextmanager
def meanwhile(function, *args):
    """Run a function in a thread, which has to end and must not raise."""
    failures = []

    def run():
        try:
            function(*args)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def echo(connection):
    """Send back what comes, until None does."""
    while (message := connection.recv()) is not None:
        connection.send(message)
    connection.close()


# -- what they are


def test_a_connection_is_one_of_the_standard_librarys_too():
    one, other = phalanx.Pipe()
    with one, other:
        for end in (one, other):
            assert isinstance(end, ours.Connection)
            assert isinstance(end, multiprocessing.connection.Connection)
            assert isinstance(end, multiprocessing.connection._ConnectionBase)
            assert type(end) is not multiprocessing.connection.Connection


def test_the_names_of_cpythons_module_are_there():
    assert not hasattr(ours, "PipeListener")
    missing = [name for name in dir(multiprocessing.connection) if not hasattr(ours, name)]
    assert missing == []
    with pytest.raises(AttributeError):
        _ = ours.no_such_name


def test_every_context_makes_pipes_of_ours(ctx):
    for duplex in (True, False):
        for end in ctx.Pipe(duplex):
            assert type(end) is ours.Connection
            end.close()


def test_which_ends_may_send_and_receive():
    one, other = phalanx.Pipe(duplex=False)
    with one, other:
        assert (one.readable, one.writable) == (True, False)
        assert (other.readable, other.writable) == (False, True)
        for call in (lambda: one.send(1), lambda: one.send_bytes(b"")):
            with pytest.raises(OSError, match="connection is read-only"):
                call()
        for call in (other.recv, other.recv_bytes, other.poll, lambda: other.recv_bytes_into(b"")):
            with pytest.raises(OSError, match="connection is write-only"):
                call()


def test_the_descriptor_is_close_on_exec_and_can_be_selected():
    one, other = phalanx.Pipe()
    with one, other:
        assert not os.get_inheritable(one.fileno())
        assert select.select([one], [], [], 0) == ([], [], [])
        other.send("x")
        assert select.select([one], [other], [], PATIENCE) == ([one], [other], [])


def test_an_end_may_be_subclassed_with_arguments_of_its_own():
    class Named(ours.Connection):
        def __init__(self, fd, name, *, writable=True):
            super().__init__(fd, writable=writable)
            self.name = name

    one, other = phalanx.Pipe()
    with other:
        handle, one._handle = one._handle, None
        with Named(handle, "n", writable=False) as named:
            other.send(3)
            assert (named.recv(), named.name, named.writable) == (3, "n", False)


# -- messages


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_every_size_arrive_as_they_were_sent(ends, size):
    receiver, sender = ends
    message = os.urandom(size)
    with meanwhile(sender.send_bytes, message):
        assert receiver.recv_bytes() == message
    with meanwhile(sender.send, [message, size]):
        assert receiver.recv() == [message, size]
    room = bytearray(size + 10)
    with meanwhile(sender.send_bytes, memoryview(message)):
        assert receiver.recv_bytes_into(room, 7) == size
    assert room == bytes(7) + message + bytes(3)


def test_borders_of_messages_are_kept(ends):
    receiver, sender = ends
    for message in (b"a", b"", b"bc", b""):
        sender.send_bytes(message)
    assert [receiver.recv_bytes() for _ in range(4)] == [b"a", b"", b"bc", b""]
    assert not receiver.poll()


@pytest.mark.parametrize(
    ("buffer", "args", "sent"),
    [
        (b"abcdef", (2,), b"cdef"),
        (b"abcdef", (2, 3), b"cde"),
        (b"abcdef", (6,), b""),
        (bytearray(b"abcdef"), (1, 2), b"bc"),
        (memoryview(b"abcdef")[::1], (0, 0), b""),
        (array.array("i", [1, 2]), (4,), array.array("i", [2]).tobytes()),
        (array.array("i"), (), b""),
        (memoryview(bytes(range(8))).cast("B", (2, 4)), (1, 4), bytes(range(1, 5))),
    ],
)
def test_parts_of_all_kinds_of_buffers_are_sent(ends, buffer, args, sent):
    receiver, sender = ends
    sender.send_bytes(buffer, *args)
    assert receiver.recv_bytes() == sent


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((b"abc", -1), ValueError, "offset is negative"),
        ((b"abc", 4), ValueError, "buffer length < offset"),
        ((b"abc", 1, -1), ValueError, "size is negative"),
        ((b"abc", 1, 3), ValueError, r"buffer length < offset \+ size"),
        ((bytearray(b"abc"), 1, 3), ValueError, r"buffer length < offset \+ size"),
        (("text",), TypeError, "bytes-like"),
        ((None,), TypeError, "bytes-like"),
        ((memoryview(b"abcd")[::2],), (TypeError, BufferError), "contiguous"),
    ],
)
def test_what_cannot_be_sent_is_told_and_sends_nothing(ends, args, error, text):
    receiver, sender = ends
    with pytest.raises(error, match=text):
        sender.send_bytes(*args)
    assert not receiver.poll()
    sender.send_bytes(b"next")
    assert receiver.recv_bytes() == b"next"


def test_an_object_that_cannot_be_pickled_sends_nothing(ends):
    receiver, sender = ends
    with pytest.raises((AttributeError, pickle.PicklingError)):
        sender.send([b"x" * 100_000, lambda: None])
    assert not receiver.poll()
    sender.send("next")
    assert receiver.recv() == "next"


def test_an_object_that_cannot_be_unpickled_takes_its_own_message_only(ends):
    receiver, sender = ends
    sender.send_bytes(b"no pickle")
    sender.send("next")
    with pytest.raises(pickle.UnpicklingError):
        receiver.recv()
    assert receiver.recv() == "next"


def test_a_buffer_that_is_too_short_loses_nothing(ends):
    receiver, sender = ends
    sender.send_bytes(b"0123456789")
    sender.send_bytes(b"next")
    with pytest.raises(multiprocessing.BufferTooShort) as caught:
        receiver.recv_bytes_into(bytearray(12), 3)
    assert caught.value.args == (b"0123456789",)
    assert receiver.recv_bytes() == b"next"


@pytest.mark.parametrize(
    ("buffer", "offset", "error"),
    [
        (bytearray(4), -1, ValueError),
        (bytearray(4), 5, ValueError),
        (b"read-only", 0, TypeError),
        ("text", 0, TypeError),
    ],
)
def test_a_wrong_buffer_leaves_the_message(ends, buffer, offset, error):
    receiver, sender = ends
    sender.send_bytes(b"kept")
    with pytest.raises(error):
        receiver.recv_bytes_into(buffer, offset)
    assert receiver.recv_bytes() == b"kept"


def test_bytes_go_into_buffers_of_larger_items(ends):
    receiver, sender = ends
    numbers = array.array("i", [1, 2, 3])
    sender.send_bytes(array.array("i", [7]))
    assert receiver.recv_bytes_into(numbers, 4) == 4
    assert numbers.tolist() == [1, 7, 3]


def test_a_message_longer_than_allowed_ends_receiving():
    one, other = phalanx.Pipe()
    with one, other:
        other.send_bytes(b"12345")
        assert one.recv_bytes(5) == b"12345"
        with pytest.raises(ValueError, match="negative maxlength"):
            one.recv_bytes(-1)
        other.send_bytes(b"123456")
        with pytest.raises(OSError, match="bad message length"):
            one.recv_bytes(5)
        with pytest.raises(OSError, match="write-only"):
            one.recv_bytes()
        one.send("still")
        assert other.recv() == "still"
    one, other = phalanx.Pipe(duplex=False)
    with one, other:
        other.send_bytes(b"123456")
        with pytest.raises(OSError, match="bad message length"):
            one.recv_bytes(5)
        assert one.closed


@pytest.mark.parametrize("header", [b"\xff\xff\xff\xfe", b"\x80\0\0\0", b"\xff" * 12])
def test_what_is_no_header_is_told(header):
    one, other = phalanx.Pipe()
    with one, other:
        os.write(other.fileno(), header)
        with pytest.raises(OSError, match="bad message length"):
            one.recv()


def test_a_lie_about_the_length_takes_no_memory():
    one, other = phalanx.Pipe()
    with one:
        with other:
            os.write(other.fileno(), b"\xff\xff\xff\xff" + (1 << 46).to_bytes(8, "big") + b"short")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(EOFError):
            one.recv_bytes()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_long_header_is_read_as_well():
    one, other = phalanx.Pipe()
    with one, other:
        os.write(other.fileno(), b"\xff\xff\xff\xff" + (5).to_bytes(8, "big") + b"hello")
        assert one.recv_bytes() == b"hello"


def test_messages_in_pieces_of_a_byte_arrive(ends):
    receiver, sender = ends
    message = pickle.dumps({"a": [1, 2]})
    for byte in len(message).to_bytes(4, "big") + message[:-1]:
        os.write(sender.fileno(), bytes([byte]))
    with meanwhile(os.write, sender.fileno(), message[-1:]):
        assert receiver.recv() == {"a": [1, 2]}


def test_a_connection_over_a_pipe_of_the_operating_system_works():
    one, other = os.pipe()
    with ours.Connection(one, writable=False) as receiver, ours.Connection(other) as sender:
        for size in SIZES:
            message = os.urandom(size)
            with meanwhile(sender.send_bytes, message):
                assert receiver.recv_bytes() == message
        assert not receiver.poll(0.01)
        with meanwhile(sender.send, "late"):
            assert receiver.recv() == "late"
        sender.close()
        with pytest.raises(EOFError):
            receiver.recv()


@pytest.mark.parametrize("standard_sends", [True, False])
def test_the_standard_librarys_class_understands_the_other_end(standard_sends):
    one, other = phalanx.Pipe()
    with one:
        handle, other._handle = other._handle, None
        with multiprocessing.connection.Connection(handle) as standard:
            sender, receiver = (standard, one) if standard_sends else (one, standard)
            for size in SIZES:
                message = os.urandom(size)
                with meanwhile(sender.send_bytes, message):
                    assert receiver.recv_bytes() == message
                with meanwhile(sender.send, {"size": size}):
                    assert receiver.recv() == {"size": size}


@pytest.mark.skipif(not os.environ.get("PHALANX_SLOW"), reason="PHALANX_SLOW=1 runs it")
@pytest.mark.time_limit(300)
def test_three_gigabytes_are_one_message():
    size = 3 << 30
    one, other = phalanx.Pipe()
    with one, other:
        process = phalanx.get_context("fork").Process(target=send_large, args=(other, size))
        process.start()
        message = one.recv_bytes()
        assert len(message) == size
        assert (message[:3], message[-3:]) == (b"abc", b"xyz")
        process.join()
        assert process.exitcode == 0


def send_large(connection, size):
    message = bytearray(size)
    message[:3], message[-3:] = b"abc", b"xyz"
    connection.send_bytes(message)


def test_the_time_for_a_message_grows_with_its_size_only():
    one, other = phalanx.Pipe()

    def rate(size):
        message = bytes(size)
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            with meanwhile(other.send_bytes, message):
                one.recv_bytes()
            best = min(best, time.perf_counter() - begin)
        return best / size

    with one, other:
        # Quadratic copying would make it 64 times as long.
        assert rate(128 << 20) < 12 * rate(2 << 20)


# -- poll, wait, closing


def test_poll_tells_whether_there_is_a_message(ends):
    receiver, sender = ends
    assert receiver.poll() is False
    assert receiver.poll(-1) is False
    begin = time.monotonic()
    assert receiver.poll(0.05) is False
    assert 0.04 < time.monotonic() - begin < PATIENCE
    sender.send(1)
    assert receiver.poll() is True
    assert receiver.poll(None) is True
    receiver.recv()
    with meanwhile(sender.send, 2):
        assert receiver.poll(None) is True


@pytest.mark.parametrize(("timeout", "error"), [("1", TypeError), (float("nan"), ValueError)])
def test_a_timeout_that_is_none_is_told(timeout, error):
    one, other = phalanx.Pipe()
    with one, other:
        with pytest.raises(error):
            one.poll(timeout)
        with pytest.raises(error):
            ours.wait([one], timeout)


def test_a_closed_connection_says_so():
    one, other = phalanx.Pipe()
    assert not one.closed
    with one as entered:
        assert entered is one
    one.close()
    assert one.closed
    calls = [
        *(one.recv, one.recv_bytes, one.poll, one.fileno),
        *(lambda: one.send(1), lambda: one.send_bytes(b""), lambda: one.recv_bytes_into(b"")),
        lambda: ours.wait([one], 0),
    ]
    for call in calls:
        with pytest.raises(OSError, match="handle is closed"):
            call()
    other.close()


def test_an_end_that_nobody_has_any_more_closes():
    one, other = phalanx.Pipe()
    del other
    with one, pytest.raises(EOFError):
        one.recv()


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((-1,), ValueError, "invalid handle"),
        (("1",), (TypeError, AttributeError), "__index__"),
        ((0, False, False), ValueError, "at least one of"),
    ],
)
def test_a_wrong_handle_is_told(args, error, text):
    with pytest.raises(error, match=text):
        ours.Connection(*args)


def test_a_descriptor_that_is_not_open_is_told():
    connection = ours.Connection(44977608)
    for call in (connection.poll, connection.recv, lambda: connection.send(1)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        connection.close()
    connection.close()


def test_a_close_by_another_thread_ends_a_call():
    one, other = phalanx.Pipe()
    closing = meanwhile(close_when_asleep, one, threading.get_native_id())
    with other, closing, pytest.raises(OSError, match="Bad file descriptor"):
        one.recv()


def close_when_asleep(connection, thread):
    until_asleep(thread)
    connection.close()


def until_asleep(thread):
    """Wait until a thread of this process sleeps in the kernel for a poll."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        wchan = Path(f"/proc/self/task/{thread}/wchan").read_text()
        state = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "S" and ("poll" in wchan or wchan == "0"):  # some kernels do not tell
            return
    raise AssertionError("it does not sleep")


def test_wait_takes_all_that_has_a_descriptor_and_keeps_the_order():
    one, other = phalanx.Pipe()
    left, right = socket.socketpair()
    number, writer = os.pipe()
    process = phalanx.get_context("fork").Process(target=int)
    process.start()
    try:
        objects = [process.sentinel, left, one, number]
        process.join()
        assert ours.wait(objects, PATIENCE) == [process.sentinel]
        assert ours.wait(objects[1:], 0) == []
        os.write(writer, b"x")
        other.send(1)
        assert ours.wait(objects, PATIENCE) == [process.sentinel, one, number]
        right.close()
        assert ours.wait(iter(objects), None) == objects
        assert ours.wait([one, one], -1) == [one, one]
    finally:
        process.close()
        for each in (one, other, left, right):
            each.close()
        os.close(number)
        os.close(writer)


def test_wait_keeps_to_its_time():
    one, other = phalanx.Pipe()
    with one, other:
        for timeout in (0, -5, 0.0):
            assert ours.wait([one], timeout) == []
        begin = time.monotonic()
        assert ours.wait([one], 0.05) == []
        assert 0.04 < time.monotonic() - begin < PATIENCE
    assert ours.wait([]) == []
    assert ours.wait([], 0.01) == []


@pytest.mark.parametrize("wrong", ["text", None, 1.5, object()])
def test_wait_tells_what_has_no_descriptor(wrong):
    with pytest.raises(ValueError, match="Invalid file object"):
        ours.wait([wrong], 0)
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        ours.wait([-1], 0)


def test_wait_for_more_descriptors_than_select_can():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2600
    if hard != resource.RLIM_INFINITY and hard < wanted + 100:
        pytest.skip("the limit of open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 100), hard))
    pipes = []
    try:
        pipes.extend(phalanx.Pipe() for _ in range(wanted // 2))
        ends = [one for one, _ in pipes]
        assert ends[-1].fileno() > 1024
        pipes[-1][1].send("last")
        pipes[3][1].send("fourth")
        assert ours.wait(ends, PATIENCE) == [ends[3], ends[-1]]
    finally:
        for pair in pipes:
            for end in pair:
                end.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- Ctrl-C


class Interrupted(Exception):
    """Raised by a signal handler."""


@pytest.fixture
def interruption():
    """Interrupts the main thread once it sleeps."""

    def handler(_number, _frame):
        raise Interrupted

    previous = signal.signal(signal.SIGUSR1, handler)

    main = threading.get_native_id()

    def interrupt():
        until_asleep(main)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    yield lambda: meanwhile(interrupt)
    signal.signal(signal.SIGUSR1, previous)


def test_a_signal_handler_can_end_every_wait(interruption):
    one, other = phalanx.Pipe()
    with one, other, ours.Listener() as listener:
        waits = [
            *(one.recv, one.recv_bytes, lambda: one.recv_bytes_into(bytearray(1))),
            *(lambda: one.poll(None), lambda: one.poll(600), lambda: ours.wait([one])),
            *(lambda: ours.wait([one], 600), listener.accept),
        ]
        for wait in waits:
            with interruption(), pytest.raises(Interrupted):
                wait()
        other.send("works")
        assert one.recv() == "works"
        with interruption(), pytest.raises(Interrupted):
            other.send_bytes(bytes(50 << 20))


def test_a_message_given_up_in_the_middle_ends_its_direction_only(interruption):
    one, other = phalanx.Pipe()
    with one, other:
        os.write(other.fileno(), (1000).to_bytes(4, "big") + b"some")
        with interruption(), pytest.raises(Interrupted):
            one.recv()
        with pytest.raises(OSError, match="the one before was interrupted"):
            one.recv()
        one.send("out")
        assert other.recv() == "out"
        with interruption(), pytest.raises(Interrupted):
            one.send(bytes(50 << 20))
        with pytest.raises(OSError, match="the one before was interrupted"):
            one.send(1)


def test_a_handler_that_does_not_raise_changes_nothing():
    one, other = phalanx.Pipe()
    seen = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    main = threading.get_native_id()

    def disturb():
        for _ in range(3):
            until_asleep(main)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        other.send("whole")

    try:
        with one, other, meanwhile(disturb):
            assert one.recv() == "whole"
        assert seen
    finally:
        signal.signal(signal.SIGUSR1, previous)


# -- processes


def test_both_directions_with_a_process(ctx):
    one, other = ctx.Pipe()
    process = ctx.Process(target=echo, args=(other,))
    process.start()
    other.close()
    with one:
        for message in ([1, "two", None], b"x" * (3 << 20), {"k": 1.5}):
            with meanwhile(one.send, message):
                assert one.recv() == message
        one.send(None)
        with pytest.raises(EOFError):
            one.recv()
    process.join()
    assert process.exitcode == 0


def hand_on(connection):
    """Answer over each connection, socket and file that comes."""
    while (thing := connection.recv()) is not None:
        if isinstance(thing, socket.socket):
            thing.sendall(b"by socket")
        else:
            thing.send("by connection")
        thing.close()
    connection.close()


def test_connections_and_sockets_travel_through_connections(ctx):
    one, other = ctx.Pipe()
    process = ctx.Process(target=hand_on, args=(other,))
    process.start()
    other.close()
    try:
        for duplex in (True, False):
            inner, travelling = ctx.Pipe(duplex)
            one.send(travelling)
            with inner, travelling:
                assert inner.recv() == "by connection"
        left, right = socket.socketpair()
        with left, right:
            one.send(right)
            assert left.recv(100) == b"by socket"
        one.send(None)
    finally:
        one.close()
        process.join(PATIENCE)
        resource_sharer.stop(timeout=PATIENCE)
    assert process.exitcode == 0


def test_a_copy_is_an_end_of_its_own():
    one, other = phalanx.Pipe(duplex=False)
    with one:
        with pickle.loads(pickle.dumps(other)) as pickled, copy.copy(other) as copied:
            other.close()
            assert (pickled.readable, pickled.writable) == (False, True)
            pickled.send("pickled")
            copied.send("copied")
            assert (one.recv(), one.recv()) == ("pickled", "copied")
        with pytest.raises(EOFError):
            one.recv()
    resource_sharer.stop(timeout=PATIENCE)


# -- listeners


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET", None])
@pytest.mark.parametrize("authkey", [None, b"", b"secret"])
def test_a_client_reaches_a_listener(family, authkey):
    with ours.Listener(family=family, authkey=authkey) as listener:
        with meanwhile(be_client, listener.address, authkey), listener.accept() as connection:
            assert connection.recv() == "hello"
            connection.send_bytes(b"x" * 100_000)
        assert isinstance(connection, ours.Connection)
        if family == "AF_INET":
            assert listener.last_accepted[0] == "127.0.0.1"
        address = listener.address
    assert family == "AF_INET" or not os.path.exists(address)
    for call in (listener.accept, lambda: listener.address, lambda: listener.last_accepted):
        with pytest.raises(OSError, match="listener is closed"):
            call()
    listener.close()


def be_client(address, authkey):
    with ours.Client(address, authkey=authkey) as connection:
        connection.send("hello")
        assert connection.recv_bytes() == b"x" * 100_000


def test_an_abstract_address_works():
    address = f"\0phalanx-test-{os.getpid()}"
    with ours.Listener(address) as listener:
        assert ours.address_type(listener.address) == "AF_UNIX"
        with meanwhile(be_client, listener.address, None), listener.accept() as connection:
            assert connection.recv() == "hello"
            connection.send_bytes(b"x" * 100_000)


def test_another_key_is_refused_on_both_sides():
    def refused():
        with pytest.raises(multiprocessing.AuthenticationError):
            ours.Client(listener.address, authkey=b"wrong")

    with ours.Listener(authkey=b"right") as listener:
        with meanwhile(refused), pytest.raises(multiprocessing.AuthenticationError):
            listener.accept()
        # and the next is served
        with meanwhile(be_client, listener.address, b"right"), listener.accept() as connection:
            assert connection.recv() == "hello"
            connection.send_bytes(b"x" * 100_000)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: ours.Listener(authkey="text"), TypeError),
        (lambda: ours.Client("/nowhere", authkey="text"), TypeError),
        (lambda: ours.Listener(family="AF_PIPE"), ValueError),
        (lambda: ours.Listener(r"\\.\pipe\x"), ValueError),
        (lambda: ours.Client(r"\\.\pipe\x"), ValueError),
        (lambda: ours.Listener(42), TypeError),
        (lambda: ours.Client(42), TypeError),
        (lambda: ours.arbitrary_address("AF_X"), ValueError),
        (lambda: ours.Client("/nowhere/at/all"), FileNotFoundError),
        (lambda: ours.Listener("/nowhere/at/all"), FileNotFoundError),
    ],
)
def test_a_wrong_address_or_key_is_told(call, error):
    with pytest.raises(error):
        call()


def test_an_address_in_use_is_told():
    with ours.Listener(family="AF_INET") as listener, pytest.raises(OSError, match="in use"):
        ours.Listener(listener.address)
    with ours.Listener(family="AF_UNIX") as listener:
        with pytest.raises(OSError, match="in use"):
            ours.Listener(listener.address)
        assert os.path.exists(listener.address)


def test_objects_travel_as_xml():
    with ours.XmlListener() as listener:

        def client():
            connection = ours.XmlClient(listener.address)
            connection.send({"a": [1, 2.5, "x"]})
            assert connection.recv() == ["answer"]
            connection.close()

        with meanwhile(client):
            connection = listener.accept()
            assert connection.poll(PATIENCE)
            assert connection.recv() == {"a": [1, 2.5, "x"]}
            connection.send(["answer"])
            connection.close()


# -- other versions of Python, by their own standard library


def other_pythons():
    """Every CPython here, by version: the one that runs this, and those that are found."""
    lines = subprocess.run([PYTHONS], capture_output=True, text=True, check=False).stdout
    found = {line.split("\t")[0]: line.split("\t")[-1] for line in lines.splitlines()}
    return found or {"this": sys.executable}


PEER = textwrap.dedent(
    """
    import sys
    from multiprocessing.connection import Client, Listener

    role, family = sys.argv[1:3]
    if role == "listen":
        listener = Listener(family=family, authkey=b"secret")
        print(repr(listener.address), flush=True)
        connection = listener.accept()
    else:
        connection = Client(eval(sys.argv[3]), authkey=b"secret")
    while (message := connection.recv_bytes()) != b"end":
        connection.send_bytes(message)
        connection.send((len(message), connection.recv()))
    """
)


@pytest.mark.parametrize("family", ["AF_UNIX", "AF_INET"])
@pytest.mark.parametrize("role", ["listen", "dial"])
@pytest.mark.parametrize("version", other_pythons())
def test_the_standard_library_of_each_python_is_understood(version, role, family, monkeypatch):
    monkeypatch.setenv("PHALANX_ALLOW_MD5", "1")  # older ones know nothing else
    command = [other_pythons()[version], "-c", PEER, role, family]
    if role == "listen":
        peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        connection = ours.Client(eval(peer.stdout.readline()), authkey=b"secret")
        peer.stdout.close()
    else:
        with ours.Listener(family=family, authkey=b"secret") as listener:
            peer = subprocess.Popen([*command, repr(listener.address)])
            connection = listener.accept()
    try:
        for size in (0, 5, 20_000, 3 << 20):
            message = os.urandom(size)
            with meanwhile(connection.send_bytes, message):
                assert connection.recv_bytes() == message
            connection.send({"size": size})
            assert connection.recv() == (size, {"size": size})
        connection.send_bytes(b"end")
        with pytest.raises(EOFError):
            connection.recv()
    finally:
        connection.close()
        assert peer.wait(PATIENCE) == 0


# -- who may come


@pytest.mark.parametrize("host", ["", "0.0.0.0"])
def test_a_listener_that_other_machines_reach_needs_an_authkey(host):
    with pytest.raises(ValueError, match="without an authkey would unpickle"):
        ours.Listener((host, 0))
    with ours.Listener((host, 0), authkey=b"secret") as listener:
        _, port = listener.address
        with meanwhile(lambda: ours.Client(("127.0.0.1", port), authkey=b"secret").close()):
            listener.accept().close()


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0), ("localhost", 0), ("127.1.2.3", 0)])
def test_one_that_only_this_machine_reaches_needs_none(address):
    ours.Listener(address, "AF_INET" if address is None else None).close()


def test_a_manager_may_be_reached_from_everywhere_for_it_asks_itself():
    with phalanx.managers.BaseManager(("", 0), authkey=b"secret") as manager:
        assert manager.address[0] == "0.0.0.0"


# -- the digest of the challenge


def asked(answer: Callable[[bytes], bytes]) -> None:
    """Ask one who answers so, and be asked."""
    ask, reply = ours.Pipe()

    def reply_so() -> None:
        message = reply.recv_bytes().removeprefix(b"#CHALLENGE#")
        reply.send_bytes(answer(message))

    with ask, reply, meanwhile(reply_so):
        ours.deliver_challenge(ask, b"secret")


def answered(message: bytes) -> bytes:
    """What we answer to a challenge."""
    ask, reply = ours.Pipe()
    answers = []

    def ask_so() -> None:
        ask.send_bytes(b"#CHALLENGE#" + message)
        with contextlib.suppress(EOFError):
            answers.append(ask.recv_bytes())
            ask.send_bytes(b"#WELCOME#")

    with ask, meanwhile(ask_so), reply:
        ours.answer_challenge(reply, b"secret")
    return answers[0]


def test_sha256_is_what_is_asked_for_and_answered():
    def answer(message: bytes) -> bytes:
        assert message.startswith(b"{sha256}")
        assert len(message) == len(b"{sha256}") + 40
        return b"{sha256}" + hmac.digest(b"secret", message, "sha256")

    asked(answer)
    assert answered(b"{sha256}" + bytes(40)).startswith(b"{sha256}")
    assert answered(b"{sha3_384}" + bytes(40)).startswith(b"{sha3_384}")


@pytest.mark.parametrize("prefix", [b"", b"{md5}"])
def test_a_downgrade_to_md5_is_refused_unless_it_is_asked_for(prefix, monkeypatch):
    def answer(message: bytes) -> bytes:
        return prefix + hmac.digest(b"secret", message, "md5")

    challenge = b"{md5}" + bytes(40) if prefix else bytes(20)
    monkeypatch.setenv("PHALANX_ALLOW_MD5", "0")
    with pytest.raises(ours.AuthenticationError, match="PHALANX_ALLOW_MD5=1"):
        asked(answer)
    with pytest.raises(ours.AuthenticationError, match="PHALANX_ALLOW_MD5=1"):
        answered(challenge)
    monkeypatch.setenv("PHALANX_ALLOW_MD5", "1")
    asked(answer)
    assert answered(challenge) == prefix + hmac.digest(b"secret", challenge, "md5")


def test_by_default_md5_is_for_the_python_that_has_nothing_else(monkeypatch):
    monkeypatch.delenv("PHALANX_ALLOW_MD5", raising=False)
    if sys.version_info < (3, 12):
        assert len(answered(bytes(20))) == 16
    else:
        with pytest.raises(ours.AuthenticationError, match="CPython before"):
            answered(bytes(20))


@pytest.mark.parametrize(
    "message", [b"", bytes(19), bytes(21), b"{sha256", b"{sha1}" + bytes(40), b"{}" + bytes(40)]
)
def test_another_challenge_is_refused(message):
    with pytest.raises(ours.AuthenticationError):
        answered(message)


@pytest.mark.parametrize(
    "answer", [b"", bytes(16), bytes(32), b"{sha256}", b"{sha512}" + bytes(64)]
)
def test_another_answer_is_refused(answer):
    with pytest.raises(ours.AuthenticationError):
        asked(lambda _message: answer)
