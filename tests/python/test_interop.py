"""Objects of phalanx in the standard library's processes, and the other way round."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
from collections.abc import Iterator
from typing import Any

import phalanx
import pytest
from kinds import KINDS, PATIENCE, be_the_child
from tasks import nothing

PACKAGES = {"phalanx": phalanx, "standard": multiprocessing}
# Whose objects, in whose processes.
MIXED = [("phalanx", "standard"), ("standard", "phalanx")]


@pytest.fixture(scope="module", autouse=True)
def _warm_standard() -> Iterator[None]:
    """What the standard library makes once and keeps: its fork server, the first arena of its heap.

    It would be the leak of the first test that needs it.
    """
    for context in (multiprocessing, phalanx):
        context.Value("i")
    process = multiprocessing.get_context("forkserver").Process(target=nothing)
    process.start()
    process.join()
    yield
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(params=MIXED, ids=lambda pair: f"{pair[0]}'s in {pair[1]}'s")
def contexts(request: pytest.FixtureRequest, method: str) -> tuple[Any, Any]:
    """The context of the objects, and that of the processes; one is phalanx's."""
    objects, processes = (PACKAGES[name].get_context(method) for name in request.param)
    return objects, processes


@pytest.mark.parametrize("name", KINDS)
def test_an_object_works_in_the_other_ones_process(contexts, name):
    objects, processes = contexts
    kind = KINDS[name]()
    it = kind.make(objects)
    try:
        kind.before(it)
        process = processes.Process(target=be_the_child, args=(name, it))
        process.start()
        try:
            kind.parent(it)
            process.join(PATIENCE)
            assert process.exitcode == 0
        finally:
            process.kill()
            process.join()
            process.close()
    finally:
        kind.clean(it)


def take(lock: Any, queue: Any, total: Any) -> None:
    """An initializer: keep what was given, as programs do that share a lock with a pool."""
    global given  # noqa: PLW0603
    given = lock, queue, total


def use(number: int) -> None:
    """A task: use what `take` has kept."""
    lock, queue, total = given
    with lock:
        total.value += number
    queue.put(number)


def test_objects_work_as_initargs_of_the_other_ones_pool(contexts):
    objects, processes = contexts
    shared = objects.Lock(), objects.Queue(), objects.Value("i", 0)
    with processes.Pool(2, take, shared) as pool:
        pool.map(use, range(20))
        assert sorted(shared[1].get(timeout=PATIENCE) for _ in range(20)) == list(range(20))
        pool.close()
        pool.join()
    shared[1].close()
    shared[1].join_thread()
    assert shared[2].value == sum(range(20))


def test_processes_of_both_are_children_of_one_process(method):
    children = [PACKAGES[name].get_context(method).Process(target=nothing) for name in PACKAGES]
    for child in children:
        child.start()
    try:
        names = {child.name for child in children}
        assert len(names) == 2
        for package in PACKAGES.values():
            # Either has reaped those that ended.
            assert {child.name for child in package.active_children()} <= names
    finally:
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0, 0]


def test_wait_takes_the_sentinels_of_both(method):
    children = [PACKAGES[name].get_context(method).Process(target=nothing) for name in PACKAGES]
    for child in children:
        child.start()
    for package in PACKAGES.values():
        waiting = {child.sentinel for child in children}
        while waiting:
            ready = package.connection.wait(list(waiting), timeout=PATIENCE)
            assert ready
            waiting -= set(ready)
    for child in children:
        child.join()


def dial(package: str, address: str) -> None:
    """Be the client of a listener."""
    with PACKAGES[package].connection.Client(address, authkey=b"secret") as connection:
        connection.send(["hello", connection.recv()])


@pytest.mark.parametrize(("listening", "dialling"), MIXED)
def test_a_listener_of_one_accepts_a_client_of_the_other(listening, dialling):
    child = None
    with PACKAGES[listening].connection.Listener(authkey=b"secret") as listener:
        child = phalanx.get_context("spawn").Process(target=dial, args=(dialling, listener.address))
        child.start()
        with listener.accept() as connection:
            connection.send("world")
            assert connection.recv() == ["hello", "world"]
    child.join()
    assert child.exitcode == 0


def test_a_start_method_is_settled_for_each_by_itself():
    assert phalanx.get_context("spawn").Process is not multiprocessing.get_context("spawn").Process
    assert isinstance(phalanx.get_context("spawn"), multiprocessing.context.BaseContext)
