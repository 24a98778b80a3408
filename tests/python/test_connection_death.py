"""What a death does to a connection: a test for each row of the table in `phalanx.connection`.

Where a process dies inside of a call it is known to be there: what it sends does not fit, so it
waits for room, or all that it can read was read, so it waits for the rest.
"""

import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import time

import phalanx
import phalanx.connection as ours
import pytest
from tasks import nothing

PATIENCE = 20.0  # seconds that anything here may take
AT_ONCE = 5.0  # seconds: no timeout of anybody's is as short
LARGE = 32 << 20  # bytes: more than any buffer between two ends
SIOCOUTQ = termios.TIOCOUTQ


def unread(fd: int) -> int:
    """How many bytes that were sent here the other side has not read."""
    return struct.unpack("i", fcntl.ioctl(fd, SIOCOUTQ, b"\0" * 4))[0]


def arrived(fd: int) -> int:
    """How many bytes there are to read."""
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]


def until(condition):
    """Wait for something to be so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.001)


@contextlib.contextmanager
def at_once():
    """Assert that what is done here takes no time."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < AT_ONCE


@contextlib.contextmanager
def child(ctx, target, *args):
    """A process that runs ``target``; killed in the end."""
    process = ctx.Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def kill(process):
    """Kill it and wait until it is dead."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def send_then_sleep(connection, *messages):
    for message in messages:
        connection.send(message)
    signal.pause()


def send_large(connection):
    connection.send_bytes(bytes(LARGE))


def receive(connection):
    connection.recv_bytes()
    signal.pause()


@pytest.mark.parametrize("duplex", [True, False])
def test_a_death_between_messages_is_the_end_after_what_was_sent(ctx, duplex):
    one, other = ctx.Pipe(duplex)
    with one, child(ctx, send_then_sleep, other, "first", b"x" * 10_000) as process:
        other.close()
        assert one.recv() == "first"
        until(lambda: arrived(one.fileno()) > 10_000)
        kill(process)
        with at_once():
            assert one.poll(PATIENCE)
            assert one.recv() == b"x" * 10_000
            for call in (one.recv, one.recv_bytes, lambda: one.recv_bytes_into(bytearray(9))):
                assert one.poll()
                with pytest.raises(EOFError) as caught:
                    call()
                assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize("duplex", [True, False])
def test_a_writer_killed_in_the_middle_of_a_message_is_the_end_at_once(ctx, duplex):
    one, other = ctx.Pipe(duplex)
    with one, child(ctx, send_large, other) as process:
        other.close()
        assert one.poll(PATIENCE)  # it has begun, and cannot finish before we read
        kill(process)
        with at_once(), pytest.raises(EOFError, match="got end of file during message") as caught:
            one.recv_bytes()
        assert isinstance(caught.value, OSError)  # which is what CPython raises
        with at_once(), pytest.raises(EOFError):
            one.recv_bytes()


def test_a_writer_killed_while_its_message_is_read_is_the_end_at_once(ctx):
    one, other = ctx.Pipe()
    with one, child(ctx, send_part_and_die, other):
        other.close()
        assert one.poll(PATIENCE)
        with at_once(), pytest.raises(EOFError, match="during message"):
            one.recv_bytes()


def send_part_and_die(connection):
    """Begin a message, and die once the other side waits for the rest of it."""
    os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"some")
    until(lambda: unread(connection.fileno()) == 0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_with_messages_of_ours_unread_is_the_end_after_what_was_sent(ctx):
    one, other = ctx.Pipe()
    with one, child(ctx, send_then_sleep, other, "answer") as process:
        other.close()
        one.send("never read")
        assert one.poll(PATIENCE)
        kill(process)
        assert one.recv() == "answer"
        with at_once(), pytest.raises(EOFError):
            one.recv()


@pytest.mark.parametrize("duplex", [True, False])
def test_a_reader_killed_while_we_send_is_a_broken_pipe(ctx, duplex):
    one, other = ctx.Pipe(duplex)
    with other, child(ctx, receive_some, one) as process:
        one.close()

        def kill_in_the_middle():
            until(lambda: unread(other.fileno()) > 50_000)  # more is not read
            kill(process)

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        with at_once(), pytest.raises(BrokenPipeError):
            other.send_bytes(bytes(LARGE))
        killer.join()
        with at_once(), pytest.raises(BrokenPipeError):
            other.send("more")


def receive_some(connection):
    """Read the beginning of a message, and no more."""
    os.read(connection.fileno(), 1000)
    signal.pause()


def test_a_reader_killed_inside_of_a_message_is_a_broken_pipe(ctx):
    one, other = ctx.Pipe()
    with other, child(ctx, receive, one) as process:
        one.close()
        os.write(other.fileno(), (1000).to_bytes(4, "big") + b"some")
        until(lambda: unread(other.fileno()) == 0)  # so it waits for the rest
        kill(process)
        with at_once(), pytest.raises(BrokenPipeError):
            os.write(other.fileno(), bytes(996))
        with at_once(), pytest.raises(BrokenPipeError):
            other.send(1)
        with at_once(), pytest.raises(EOFError):
            other.recv()


def test_a_death_makes_an_end_ready_for_who_waits(ctx):
    for wait in (lambda end: end.poll(None), lambda end: ours.wait([end]) == [end]):
        one, other = ctx.Pipe()
        with one, child(ctx, signal.pause) as process:
            # Only a fork has it; the others never get it, and closing is as good.
            killer = threading.Thread(target=kill, args=(process,))
            if process._start_method == "fork":
                other.close()
                killer.start()
                assert wait(one)
            else:
                killer.start()
                killer.join()
                other.close()
                assert wait(one)
            killer.join()
            with pytest.raises(EOFError):
                one.recv()


def test_an_end_left_open_by_one_process_keeps_the_other_waiting(ctx):
    one, other = ctx.Pipe()
    with one, child(ctx, send_then_sleep, other) as first:
        with child(ctx, send_then_sleep, other):
            other.close()
            kill(first)
            assert not one.poll(0.05)
        with at_once(), pytest.raises(EOFError):
            one.recv()


# -- listeners and clients


def dial_and_die(address, after):
    """Connect by hand, read ``after`` bytes of the challenge, and die."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    connection.recv(after)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("after", [0, 2, 200])
def test_a_client_that_dies_during_the_challenge_fails_one_accept(ctx, after):
    with ours.Listener(authkey=b"k") as listener:
        dying = child(ctx, dial_and_die, listener.address, after)
        with dying, at_once(), pytest.raises((EOFError, BrokenPipeError)):
            listener.accept()
        answer = threading.Thread(target=dial, args=(listener.address,))
        answer.start()
        with listener.accept() as connection:
            assert connection.recv() == "alive"
        answer.join()


def dial(address):
    with ours.Client(address, authkey=b"k") as connection:
        connection.send("alive")


def accept_and_die(connection, after):
    """Be a listener that dies after it has sent ``after`` bytes of its challenge."""
    listening = socket.socket(socket.AF_UNIX)
    path = ours.arbitrary_address("AF_UNIX")
    listening.bind(path)
    listening.listen()
    connection.send(path)
    accepted, _ = listening.accept()
    accepted.sendall((1000).to_bytes(4, "big")[:after])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_listener_that_dies_during_the_challenge_is_the_end(ctx, after):
    one, other = ctx.Pipe()
    with one, other, child(ctx, accept_and_die, other, after) as process:
        with at_once(), pytest.raises((EOFError, OSError)):
            ours.Client(one.recv(), authkey=b"k")
        process.join()


def listen(connection):
    listener = ours.Listener()
    connection.send(listener.address)
    signal.pause()


def test_a_dead_listener_refuses(ctx):
    one, other = ctx.Pipe()
    with one, other, child(ctx, listen, other) as process:
        address = one.recv()
        kill(process)
        with at_once(), pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            ours.Client(address)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)


def test_a_peer_over_tcp_that_dies_is_the_end(ctx):
    with (
        ours.Listener(family="AF_INET") as listener,
        child(ctx, dial_and_sleep, listener.address) as process,
        listener.accept() as connection,
    ):
        assert connection.recv() == "first"
        connection.send("never read")
        kill(process)
        with at_once(), pytest.raises(EOFError):
            connection.recv()


def dial_and_sleep(address):
    connection = ours.Client(address)
    connection.send("first")
    signal.pause()


# -- forks


def test_a_fork_in_the_middle_of_a_call_has_ends_that_work():
    ctx = phalanx.get_context("fork")
    one, other = ctx.Pipe()
    received = []

    def take():
        received.append(one.recv())

    with one, other:
        thread = threading.Thread(target=take)
        thread.start()
        until(lambda: thread.native_id and in_poll(thread.native_id))
        with child(ctx, use_both, one, other) as process:
            process.join(PATIENCE)
            assert process.exitcode == 0
        other.send("for the thread")
        thread.join(PATIENCE)
        assert received == ["for the thread"]


def in_poll(thread):
    with open(f"/proc/self/task/{thread}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"


def use_both(one, other):
    """Use the direction in which nobody waits, then close: what was forked is a descriptor."""
    one.send(1)
    assert other.recv() == 1
    one.close()
    other.close()


def test_a_forked_end_that_is_closed_does_not_keep_the_parent_waiting():
    ctx = phalanx.get_context("fork")
    one, other = ctx.Pipe()
    with one, child(ctx, nothing) as process:
        process.join()
        other.close()
        with at_once(), pytest.raises(EOFError):
            one.recv()
