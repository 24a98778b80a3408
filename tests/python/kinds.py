"""What can be given to a process, and what two processes then do with it.

A kind is a class: ``make`` in the parent, of a context; ``before`` in the parent, before the child
starts; ``child`` in the child; ``parent`` in the parent, meanwhile; ``clean`` at last. All but
``make`` take what it returned.
"""

import contextlib
import importlib
from multiprocessing import resource_sharer
from typing import Any

PATIENCE = 30  # seconds; everything here takes milliseconds
LARGE = b"0123456789abcdef" * 20_000  # more than a pipe holds, and than fits any inline slot


class Kind:
    """One kind of object; see the module's text."""

    def make(self, ctx: Any) -> Any:
        raise NotImplementedError

    def before(self, it: Any) -> None:
        pass

    def child(self, it: Any) -> None:
        raise NotImplementedError

    def parent(self, it: Any) -> None:
        pass

    def clean(self, it: Any) -> None:
        pass


class Lock(Kind):
    def make(self, ctx):
        return ctx.Lock()

    def before(self, it):
        assert it.acquire()

    def child(self, it):
        assert not it.acquire(block=False)
        it.release()

    def parent(self, it):
        assert it.acquire(timeout=PATIENCE)
        it.release()


class RLock(Kind):
    def make(self, ctx):
        return ctx.RLock(), ctx.Semaphore(0)

    def before(self, it):
        assert it[0].acquire()
        assert it[0].acquire()

    def child(self, it):
        lock, tried = it
        assert not lock.acquire(block=False)
        tried.release()
        with lock, lock:
            pass

    def parent(self, it):
        lock, tried = it
        assert tried.acquire(timeout=PATIENCE)
        lock.release()
        lock.release()


class Semaphore(Kind):
    def make(self, ctx):
        return ctx.Semaphore(1)

    def before(self, it):
        assert it.acquire()

    def child(self, it):
        assert not it.acquire(block=False)
        it.release()
        it.release()

    def parent(self, it):
        assert it.acquire(timeout=PATIENCE)
        assert it.acquire(timeout=PATIENCE)
        assert not it.acquire(block=False)


class BoundedSemaphore(Kind):
    def make(self, ctx):
        return ctx.BoundedSemaphore(1)

    def before(self, it):
        assert it.acquire()

    def child(self, it):
        it.release()
        try:
            it.release()
        except ValueError:
            return
        raise AssertionError("released more often than acquired")


class Event(Kind):
    def make(self, ctx):
        return ctx.Event(), ctx.Event()

    def child(self, it):
        asked, answered = it
        assert asked.wait(PATIENCE)
        answered.set()

    def parent(self, it):
        asked, answered = it
        assert not answered.is_set()
        asked.set()
        assert answered.wait(PATIENCE)


class Condition(Kind):
    def make(self, ctx):
        return ctx.Condition(), ctx.Value("i", 0)

    def child(self, it):
        changed, turn = it
        with changed:
            turn.value = 1
            changed.notify_all()
            assert changed.wait_for(lambda: turn.value == 2, PATIENCE)

    def parent(self, it):
        changed, turn = it
        with changed:
            assert changed.wait_for(lambda: turn.value == 1, PATIENCE)
            turn.value = 2
            changed.notify_all()


class Barrier(Kind):
    def make(self, ctx):
        return ctx.Barrier(2, timeout=PATIENCE)

    def child(self, it):
        assert it.wait() in {0, 1}
        assert it.parties == 2

    def parent(self, it):
        it.wait()
        assert not it.broken


class Queue(Kind):
    method = "Queue"

    def make(self, ctx):
        return getattr(ctx, self.method)(), getattr(ctx, self.method)()

    def before(self, it):
        it[0].put(("small", LARGE))

    def child(self, it):
        there, back = it
        assert there.get() == ("small", LARGE)
        for number in range(100):
            back.put(number)
        back.put(LARGE)

    def parent(self, it):
        back = it[1]
        assert [back.get() for _ in range(100)] == list(range(100))
        assert back.get() == LARGE

    def clean(self, it):
        for queue in it:
            queue.close()
            if hasattr(queue, "join_thread"):
                queue.join_thread()


class SimpleQueue(Queue):
    method = "SimpleQueue"

    def before(self, it):
        it[0].put("small")  # a put of what does not fit a pipe waits for the reader

    def child(self, it):
        there, back = it
        assert there.get() == "small"
        for number in range(100):
            back.put(number)
        back.put(LARGE)


class JoinableQueue(Queue):
    method = "JoinableQueue"

    def child(self, it):
        super().child(it)
        it[0].task_done()

    def parent(self, it):
        super().parent(it)
        it[0].join()


class Pipe(Kind):
    def make(self, ctx):
        return ctx.Pipe()

    def before(self, it):
        it[0].send("to the child")

    def child(self, it):
        theirs, ours = it
        theirs.close()
        assert ours.recv() == "to the child"
        ours.send_bytes(LARGE)
        assert ours.poll(PATIENCE)
        assert ours.recv() == {"and": "again"}
        ours.close()

    def parent(self, it):
        ours, theirs = it
        theirs.close()  # or the end of the child would not be the end of the stream
        assert ours.recv_bytes() == LARGE
        ours.send({"and": "again"})
        with contextlib.suppress(EOFError):
            raise AssertionError(f"received {ours.recv()!r} of a closed pipe")

    def clean(self, it):
        for end in it:
            end.close()


class OneWayPipe(Kind):
    def make(self, ctx):
        return ctx.Pipe(duplex=False)

    def child(self, it):
        assert (it[0].readable, it[0].writable) == (True, False)
        it[1].send(LARGE)

    def parent(self, it):
        assert it[0].recv() == LARGE

    def clean(self, it):
        for end in it:
            end.close()


class ConnectionInAMessage(Pipe):
    """A connection travels through another one."""

    def make(self, ctx):
        return *ctx.Pipe(), *ctx.Pipe()

    def before(self, it):
        pass

    def child(self, it):
        travelled = it[1].recv()
        travelled.send("from far away")
        travelled.close()

    def parent(self, it):
        outer, _, inner, travelling = it
        outer.send(travelling)
        assert inner.recv() == "from far away"

    def clean(self, it):
        super().clean(it)
        resource_sharer.stop(timeout=PATIENCE)


class Value(Kind):
    def make(self, ctx):
        return ctx.Value("q", 40)

    def child(self, it):
        with it.get_lock():
            it.value += 1

    def clean(self, it):
        assert it.value == 41


class Array(Kind):
    def make(self, ctx):
        return ctx.Array("d", 4), ctx.Array("c", b"text")

    def child(self, it):
        numbers, text = it
        with numbers:
            numbers[1:3] = [0.5, 0.25]
        text.value = b"next"

    def clean(self, it):
        numbers, text = it
        assert list(numbers) == [0, 0.5, 0.25, 0]
        assert text.value == b"next"


class Raw(Kind):
    def make(self, ctx):
        return ctx.RawValue("i", 1), ctx.RawArray("i", [1, 2, 3])

    def child(self, it):
        it[0].value = 7
        it[1][0] = 8

    def clean(self, it):
        assert it[0].value == 7
        assert list(it[1]) == [8, 2, 3]


class SharedMemory(Kind):
    def make(self, ctx):
        return module_like(ctx, "shared_memory").SharedMemory(create=True, size=100)

    def child(self, it):
        it.buf[:5] = b"hello"
        it.close()

    def clean(self, it):
        read = bytes(it.buf[:5])
        it.close()
        it.unlink()
        assert read == b"hello"


class ShareableList(Kind):
    def make(self, ctx):
        return module_like(ctx, "shared_memory").ShareableList([1, "two", None])

    def child(self, it):
        assert list(it) == [1, "two", None]
        it[0] = 5
        it.shm.close()

    def clean(self, it):
        read = it[0]
        it.shm.close()
        it.shm.unlink()
        assert read == 5


class Proxies(Kind):
    """What a manager of the context's makes; the manager itself stays with the parent."""

    def make(self, ctx):
        self.manager = manager = ctx.Manager()
        return {
            "dict": manager.dict(a=1),
            "list": manager.list([1, 2]),
            "namespace": manager.Namespace(x=1),
            "value": manager.Value("i", 3),
            "queue": manager.Queue(),
            "lock": manager.Lock(),
            "event": manager.Event(),
        }

    def child(self, it):
        assert it["dict"]["a"] == 1
        it["dict"]["list"] = it["list"]  # a proxy in a proxy
        with it["lock"]:
            it["list"].append(3)
        it["namespace"].y = it["namespace"].x + 1
        it["value"].value += 1
        it["queue"].put("from the child")
        it["event"].set()

    def parent(self, it):
        assert it["event"].wait(PATIENCE)
        assert it["queue"].get() == "from the child"
        assert list(it["dict"]["list"]) == [1, 2, 3]
        assert it["namespace"].y == 2
        assert it["value"].value == 4

    def clean(self, it):
        it.clear()
        self.manager.shutdown()


def module_like(ctx: Any, name: str) -> Any:
    """The module ``name`` of the package that ``ctx`` is of."""
    package = type(ctx).__module__.partition(".")[0]
    return importlib.import_module(f"{package}.{name}")


KINDS = {
    kind.__name__: kind
    for kind in (
        *(Lock, RLock, Semaphore, BoundedSemaphore, Event, Condition, Barrier),
        *(Queue, SimpleQueue, JoinableQueue, Pipe, OneWayPipe, ConnectionInAMessage),
        *(Value, Array, Raw, SharedMemory, ShareableList, Proxies),
    )
}


def be_the_child(name: str, it: Any) -> None:
    """The target of a process: the child's part in the kind ``name``."""
    KINDS[name]().child(it)
