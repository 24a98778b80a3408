"""Managers and their proxies, with the standard library on either side, and what deaths leave."""

import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import managers as standard

import phalanx
import pytest
from phalanx import managers
from phalanx._phalanx import Line

SOON = 5.0
ENDED = (EOFError, ConnectionError, FileNotFoundError)


@pytest.fixture
def manager(ctx):
    with ctx.Manager() as manager:
        yield manager


def use(mapping, sequence, lock, event):
    with lock:
        mapping["child"] = len(sequence)
        sequence.append(os.getpid())
    event.set()


def test_children_use_what_a_manager_holds(ctx, manager):
    mapping, sequence = manager.dict(a=1), manager.list([1, 2])
    lock, event = manager.Lock(), manager.Event()
    child = ctx.Process(target=use, args=(mapping, sequence, lock, event))
    child.start()
    assert event.wait(30)
    child.join()
    assert mapping.copy() == {"a": 1, "child": 2}
    assert list(sequence) == [1, 2, child.pid]


def test_every_kind_of_object_works(manager):
    namespace, value, array = manager.Namespace(x=1), manager.Value("i", 3), manager.Array("i", [1])
    namespace.y = 2
    value.value += 1
    array[0] = 7
    assert (namespace.x, namespace.y, value.get(), array[0], len(array)) == (1, 2, 4, 7, 1)
    queue, lock, semaphore = manager.Queue(), manager.RLock(), manager.BoundedSemaphore(1)
    queue.put("item")
    assert queue.get(timeout=10) == "item"
    with lock, semaphore:
        assert not semaphore.acquire(False)
    condition, barrier = manager.Condition(), manager.Barrier(1)
    with condition:
        assert not condition.wait(0.01)
    assert barrier.wait() == 0
    assert (barrier.parties, barrier.broken) == (1, False)
    pool = manager.Pool(1)
    assert pool.map(abs, [-1, -2]) == [1, 2]
    assert pool.apply_async(abs, (-3,)).get() == 3
    assert list(pool.imap(abs, [-4])) == [4]
    pool.terminate()


def test_containers_have_the_methods_of_3_14(manager):
    mapping = manager.dict(a=1)
    assert mapping | {"b": 2} == {"a": 1, "b": 2}
    assert {"b": 2} | mapping == {"a": 1, "b": 2}
    mapping |= {"c": 3}
    assert list(mapping) == ["a", "c"]
    assert list(reversed(mapping.keys())) == ["c", "a"]
    sequence = manager.list([1, 2])
    assert sequence.copy() == [1, 2]
    sequence *= 2
    sequence.clear()
    assert len(sequence) == 0
    numbers = manager.set([1, 2, 3])
    numbers |= {4}
    numbers -= {1}
    numbers.discard(9)
    assert numbers & {2, 4, 8} == {2, 4}
    assert {2} < numbers._getvalue()
    assert sorted(numbers) == [2, 3, 4]
    assert 2 in numbers
    assert isinstance(numbers, managers.SetProxy)
    assert manager.Lock().locked() is False or sys.version_info < (3, 14)


def test_proxies_can_be_nested(manager):
    outer = manager.dict()
    outer["inner"] = manager.list([1])
    outer["inner"].append(2)
    assert list(outer["inner"]) == [1, 2]


def test_our_proxies_are_instances_of_theirs(manager):
    assert isinstance(manager, standard.SyncManager)
    assert isinstance(manager.list(), standard.BaseProxy)
    assert isinstance(manager.dict(), standard.DictProxy)


def test_calls_go_through_shared_memory_on_one_machine(manager):
    mapping = manager.dict()
    mapping["a"] = 1
    assert isinstance(mapping._tls.connection, Line)


def test_large_arguments_and_results_arrive(manager):
    mapping = manager.dict()
    mapping["large"] = bytes(range(256)) * 40_000
    assert mapping["large"] == bytes(range(256)) * 40_000


def test_one_proxy_serves_many_threads(manager):
    sequence = manager.list()

    def append():
        for n in range(200):
            sequence.append(n)

    threads = [threading.Thread(target=append) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sequence) == 1000


def test_a_forked_child_has_connections_of_its_own(manager):
    mapping = manager.dict(parent=1)
    assert mapping["parent"] == 1
    pid = os.fork()
    if not pid:
        mapping["child"] = mapping["parent"] + 1
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert mapping["child"] == 2


class Calculator:
    def add(self, a, b):
        return a + b

    def _hidden(self):
        return 1

    def lambda_of(self):
        return lambda: 1


class MyManager(managers.BaseManager):
    pass


MyManager.register("Calculator", Calculator)


def test_registered_types_have_their_public_methods(ctx):
    with MyManager(ctx=ctx) as manager:
        calculator = manager.Calculator()
        assert calculator.add(2, b=3) == 5
        with pytest.raises(AttributeError):
            calculator._hidden()
        with pytest.raises(managers.RemoteError, match="not in exposed"):
            calculator._callmethod("_hidden")
        with pytest.raises(managers.RemoteError, match="Unserializable"):
            calculator.lambda_of()
        with pytest.raises(TypeError):
            calculator.add(1)
        assert calculator.add(1, 1) == 2  # after all that


def test_another_key_is_refused(ctx):
    with MyManager(authkey=b"right", ctx=ctx) as manager:
        stranger = MyManager(manager.address, b"wrong")
        with pytest.raises(phalanx.AuthenticationError):
            stranger.connect()
        friend = MyManager(manager.address, b"right")
        friend.connect()
        assert friend.Calculator().add(1, 2) == 3


def test_a_manager_on_another_address_is_reached_over_the_network():
    with MyManager(("127.0.0.1", 0), b"key", ctx=phalanx.get_context("spawn")) as manager:
        friend = MyManager(manager.address, b"key")
        friend.connect()
        calculator = friend.Calculator()
        assert calculator.add(1, 2) == 3
        assert not isinstance(calculator._tls.connection, Line)


def test_a_proxy_comes_back_as_ours_over_the_network(monkeypatch):
    monkeypatch.setattr(phalanx.current_process(), "authkey", b"key")
    context = phalanx.get_context("spawn")
    with managers.SyncManager(("127.0.0.1", 0), b"key", ctx=context) as manager:
        mapping = manager.dict(b=manager.list([1, 2]))
        assert type(mapping["b"]) is managers.ListProxy
        assert list(mapping["b"]) == [1, 2]


# The standard library on the other side.

SERVER = """
import sys
from multiprocessing.managers import SyncManager
if __name__ == "__main__":
    with SyncManager(authkey=b"key") as manager:
        print(manager.address, flush=True)
        sys.stdin.read()
"""

CLIENT = """
import multiprocessing, sys
from multiprocessing.managers import SyncManager
multiprocessing.current_process().authkey = b"key"
manager = SyncManager(sys.argv[1], authkey=b"key")
manager.connect()
mapping = manager.dict(a=1)
mapping["b"] = manager.list([1, 2])
assert mapping["a"] == 1 and len(mapping) == 2
back = mapping["b"]  # a proxy comes here in a form that is known here
assert type(back).__module__ == "multiprocessing.managers" and list(back) == [1, 2]
lock = manager.Lock()
with lock:
    print(mapping.get("a"))
try:
    mapping["nothing"]
except KeyError:
    print("KeyError")
"""


def test_our_client_uses_a_server_of_the_standard_library(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        manager = managers.SyncManager(server.stdout.readline().strip(), authkey=b"key")
        manager.connect()
        mapping, sequence = manager.dict(a=1), manager.list([1])
        mapping["b"] = sequence  # a proxy goes there in a form that is known there
        sequence.append(2)
        assert len(mapping) == 2
        assert list(sequence) == [1, 2]
        with manager.Lock():
            assert [key for key in mapping.keys()] == ["a", "b"]  # noqa: C416, SIM118
        with pytest.raises(KeyError):
            mapping["nothing"]
        del mapping, sequence
        server.stdin.close()


def test_a_client_of_the_standard_library_uses_our_server(ctx, tmp_path):
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    manager = managers.SyncManager(authkey=b"key", ctx=ctx)
    with manager:
        command = [sys.executable, str(script), manager.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert (done.returncode, done.stdout.split()) == (0, ["1", "KeyError"]), done.stderr


# Deaths


def test_a_dead_server_is_an_error_at_once_and_later(manager):
    mapping = manager.dict(a=1)
    assert mapping["a"] == 1
    manager._process.kill()
    start = time.monotonic()
    with pytest.raises(ENDED):
        mapping["a"]
    with pytest.raises(ENDED):
        mapping["a"]
    with pytest.raises(ENDED):
        manager.dict()
    assert time.monotonic() - start < SOON


def test_a_server_that_dies_in_a_call_ends_the_call(manager):
    event = manager.Event()
    caught = []

    def wait():
        try:
            event.wait()
        except ENDED as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)  # it is in the call, most likely; the error is the same if it is not
    manager._process.kill()
    thread.join(SOON)
    assert caught


def call_for_ever(mapping, ready):
    ready.set()
    while True:
        mapping["n"] = mapping.get("n", 0) + 1


def test_a_client_killed_in_a_call_leaves_the_server_unharmed(ctx, manager):
    mapping = manager.dict()
    for _ in range(3):
        ready = ctx.Event()
        child = ctx.Process(target=call_for_ever, args=(mapping, ready))
        child.start()
        assert ready.wait(30)
        time.sleep(0.02)
        child.kill()
        child.join()
        mapping["after"] = True
    assert mapping["after"]


START_AND_DIE = """
import os, signal, sys
import phalanx
if __name__ == "__main__":
    manager = phalanx.get_context(sys.argv[1]).Manager()
    manager.dict()["a"] = 1
    print(manager._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_ends_with_the_process_that_started_it(method, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(START_AND_DIE)
    done = subprocess.run(
        [sys.executable, script, method], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == -signal.SIGKILL
    server = pathlib.Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + SOON
    while server.exists() and ") Z" not in server.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupted_call_leaves_a_proxy_that_works(manager):
    event = manager.Event()

    def handler(_signum, _frame):
        raise InterruptedError

    previous = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(InterruptedError):
            event.wait(30)
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    event.set()
    assert event.is_set()


def test_a_stdlib_context_starts_our_manager():
    theirs = multiprocessing.get_context("fork")
    with managers.SyncManager(ctx=theirs) as manager:
        assert manager.list([1])[0] == 1
