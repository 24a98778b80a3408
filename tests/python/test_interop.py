"""Objects of phalanx in the standard library's processes, and the other way round."""

import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import pickle
from collections.abc import Iterator
from typing import Any

import phalanx
import pytest
import tasks
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


# -- pools of subclasses that pickle in a way of their own, as joblib's does


class Traveller:
    """It says by whose reducers it has been."""

    def __init__(self, *ways: str) -> None:
        self.ways = ways


class OwnQueue:
    """A queue whose pickler knows one type more, as those of `_setup_queues` are made."""

    def __init__(self, context, way):
        self._reader, self._writer = context.Pipe(duplex=False)
        self._lock = context.Lock()
        self._way = way

    def put(self, obj):
        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.dispatch_table = {Traveller: lambda it: (Traveller, (*it.ways, self._way))}
        pickler.dump(obj)
        with self._lock:
            self._writer.send_bytes(file.getvalue())

    def get(self):
        with self._lock:
            return self._reader.recv()


class OwnPool(phalanx.pool.Pool):
    def _setup_queues(self):
        self._inqueue = OwnQueue(self._ctx, "there")
        self._outqueue = OwnQueue(self._ctx, "back")
        self._quick_put, self._quick_get = self._inqueue.put, self._outqueue.get


def ways_of(one, other=None):
    return one.ways


def test_a_subclass_of_pool_may_pickle_in_a_way_of_its_own(ctx):
    here = Traveller()
    with OwnPool(1, context=ctx) as pool:
        assert pool.apply(ways_of, (here,)) == ("there",)
        assert pool.apply(tasks.identity, (here,)).ways == ("there", "back")
        assert pool.apply(ways_of, (), {"one": here, "other": here}) == ("there",)
        assert [it.ways for it in pool.map(tasks.identity, [here] * 3)] == [("there", "back")] * 3
        assert pool.starmap(ways_of, [(here, 1)] * 2, 1) == [("there",)] * 2
        assert list(pool.imap(ways_of, iter([here] * 3), 2)) == [("there",)] * 3
        assert list(pool.imap_unordered(ways_of, [here])) == [("there",)]
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))
        with pytest.raises(phalanx.WorkerDied, match=r"tasks\.die"):
            pool.apply(tasks.die, ("SIGKILL",))
        assert pool.apply(ways_of, (here,)) == ("there",)


class SameQueuesPool(phalanx.pool.Pool):
    def _setup_queues(self):
        self._inqueue, self._outqueue = self._ctx.SimpleQueue(), self._ctx.SimpleQueue()


def test_queues_that_pickle_as_all_do_change_nothing(ctx):
    with SameQueuesPool(1, context=ctx) as pool:
        assert pool.apply(ways_of, (Traveller("none"),)) == ("none",)
        pool._inqueue.close()
        pool._outqueue.close()
