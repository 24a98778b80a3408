"""ctypes objects in shared memory: what they are, whom they reach, what deaths leave of them."""

import array
import ctypes
import multiprocessing
import multiprocessing.sharedctypes
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import ClassVar

import phalanx
import pytest
from phalanx import heap, sharedctypes
from tasks import Log, wait_for, wait_until

PATIENCE = 30  # seconds

#: A letter, and values that its type holds and that are read back as they are.
LETTERS = [
    ("b", [-128, 0, 127]),
    ("B", [0, 255]),
    ("h", [-(1 << 15), (1 << 15) - 1]),
    ("H", [0, (1 << 16) - 1]),
    ("i", [-(1 << 31), (1 << 31) - 1]),
    ("I", [0, (1 << 32) - 1]),
    ("l", [-(1 << 63), (1 << 63) - 1]),
    ("L", [0, (1 << 64) - 1]),
    ("q", [-(1 << 63), (1 << 63) - 1]),
    ("Q", [0, (1 << 64) - 1]),
    ("f", [0.5, -2.25, float("inf")]),
    ("d", [0.1, -1e300, float("-inf")]),
    ("c", [b"a", b"\0", b"\xff"]),
    ("u", ["a", "\0", "\U0001f600"]),
    (ctypes.c_bool, [True, False]),
]


class Point(ctypes.Structure):
    _fields_: ClassVar = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class Point3(Point):
    _fields_: ClassVar = [("z", ctypes.c_int)]


class MyInt(ctypes.c_int):
    """No plain int: elements of an array of these are objects."""


def run(process):
    process.start()
    process.join(PATIENCE)
    code = process.exitcode
    process.close()
    return code


@pytest.mark.parametrize(("letter", "values"), LETTERS, ids=[str(a[0]) for a in LETTERS])
def test_a_value_is_read_back_as_ctypes_would(letter, values):
    for make in (phalanx.Value, phalanx.RawValue):
        value = make(letter)
        plain = type(value.get_obj() if make is phalanx.Value else value)()
        assert value.value == plain.value
        for each in values:
            value.value = plain.value = each
            assert value.value == plain.value == each
            assert type(value.value) is type(plain.value)
            assert make(letter, each).value == each


@pytest.mark.parametrize(("letter", "values"), LETTERS, ids=[str(a[0]) for a in LETTERS])
def test_elements_and_slices_are_read_back_as_ctypes_would(letter, values):
    shared, size = phalanx.Array(letter, 7), 7
    plain = (type(shared.get_obj()))()
    some = [values[i % len(values)] for i in range(size)]
    for i, each in enumerate(some):
        shared[i] = plain[i] = each
    assert len(shared) == size
    assert list(shared) == list(plain)
    for i in range(-size, size):
        assert shared[i] == plain[i]
    for start in (None, 0, 2, -3, 9, -9):
        for stop in (None, 0, 5, -1, 9):
            for step in (None, 1, 2, -1, -3):
                part = slice(start, stop, step)
                assert shared[part] == plain[part]
                assert type(shared[part]) is type(plain[part])
    other = some[::-1]
    for given in (other[1:4], tuple(other[1:4]), plain[1:4]):
        shared[1:4] = plain[1:4] = given
        assert shared[:] == plain[:]
    shared[::3] = plain[::3] = other[:3]
    assert shared[:] == plain[:]


WRONG_VALUES = [
    ("i", 1.5),
    ("i", "1"),
    ("i", None),
    ("d", "1"),
    ("d", 10**400),
    ("c", b"ab"),
    ("c", 300),
    ("u", "ab"),
    ("u", b"a"),
]


@pytest.mark.parametrize(("letter", "wrong"), WRONG_VALUES)
def test_a_value_that_the_type_does_not_take_is_ctypes_error(letter, wrong):
    value, items = phalanx.Value(letter), phalanx.Array(letter, 3)
    plain = type(value.get_obj())()
    with pytest.raises((TypeError, OverflowError)) as expected:
        plain.value = wrong
    before = value.value, items[:]
    with pytest.raises(expected.type):
        value.value = wrong
    with pytest.raises(expected.type):
        items[1] = wrong
    with pytest.raises((TypeError, OverflowError, ValueError)):
        items[0:2] = [wrong, wrong]
    with pytest.raises(expected.type):
        phalanx.Value(letter, wrong)
    assert (value.value, items[:]) == before
    assert value.get_lock().acquire(timeout=PATIENCE)  # it was released
    value.get_lock().release()


def test_an_int_that_is_too_large_loses_its_high_bits_as_in_ctypes():
    for letter in "bBhHiIlLqQ":
        value, plain = phalanx.Value(letter), sharedctypes.typecode_to_type[letter]()
        for each in (1 << 40, -(1 << 40) + 5, 1 << 70, -3):
            value.value = plain.value = each
            assert value.value == plain.value


def test_an_index_outside_is_an_error():
    items = phalanx.Array("i", 3)
    for index in (3, -4, 1 << 80):
        with pytest.raises(IndexError):
            items[index]
        with pytest.raises(IndexError):
            items[index] = 1
    with pytest.raises(TypeError):
        items["a"]
    with pytest.raises(ValueError, match="same size"):
        items[0:2] = [1]
    with pytest.raises(ValueError, match="same size"):
        items[:] = array.array("i", [1])
    with pytest.raises(TypeError):
        del items[0]
    assert items[:] == [0, 0, 0]


def test_wrong_arguments_are_errors():
    for make in (phalanx.Value, phalanx.RawValue):
        for wrong in ("z", "", 3, None):
            with pytest.raises(TypeError):
                make(wrong)
        with pytest.raises(TypeError):
            make("i", 1, 2)
    for make in (phalanx.Array, phalanx.RawArray):
        with pytest.raises(TypeError, match="letter"):
            make("zz", 3)
        with pytest.raises(ValueError, match=r"[Nn]egative|length"):
            make("i", -1)
        with pytest.raises(TypeError):
            make("i", 2.5)
        with pytest.raises(OSError, match="memory"):
            make("c", 1 << 50)
        with pytest.raises(TypeError):
            make("i", ["a"])
    with pytest.raises(AttributeError, match="acquire"):
        phalanx.Value("i", lock="a lock")
    with pytest.raises(AttributeError, match="acquire"):
        phalanx.Array("i", 3, lock=object())
    with pytest.raises(AssertionError, match="already"):
        phalanx.sharedctypes.synchronized(phalanx.Value("i"))


def test_a_block_has_the_size_that_was_asked_for():
    for size in (0, 1, 63, 64, 65, 5000, 1 << 20):
        view = heap.BufferWrapper(size).create_memoryview()
        assert (view.nbytes, view.readonly, view.format) == (size, False, "B")
        assert bytes(view) == bytes(size)
    with pytest.raises(ValueError, match="out of range"):
        heap.BufferWrapper(-1)
    with pytest.raises(OverflowError, match="too large"):
        heap.BufferWrapper(sys.maxsize)
    with pytest.raises(OSError, match="memory"):
        heap.BufferWrapper(1 << 50)


def test_a_view_keeps_the_memory_that_it_is_of():
    view = heap.BufferWrapper(1 << 20).create_memoryview()
    others = [heap.BufferWrapper(1 << 20).create_memoryview() for _ in range(4)]
    view[:] = b"x" * len(view)
    assert all(bytes(other) == bytes(len(other)) for other in others)
    assert view.tobytes() == b"x" * len(view)


def test_memory_that_is_used_again_is_zeros():
    for _ in range(200):
        value = phalanx.RawArray("i", 10)
        assert list(value) == [0] * 10
        value[:] = [-1] * 10
        del value


def test_an_initialiser_sets_the_elements():
    assert phalanx.Array("i", [1, 2, 3])[:] == [1, 2, 3]
    assert phalanx.Array("d", range(3))[:] == [0.0, 1.0, 2.0]
    assert phalanx.Array("c", b"abc").value == b"abc"
    assert phalanx.RawArray(Point, [(1, 2), (3, 4)])[1].y == 4
    assert phalanx.Array("i", 0)[:] == []


def test_objects_that_are_no_plain_scalar_are_ctypes_own():
    items = phalanx.Array(MyInt, 2)
    items[0] = MyInt(7)
    assert isinstance(items[0], MyInt)
    assert items[0].value == 7
    points = phalanx.Array(Point, 2)
    points[1] = Point(3, 4)
    assert (points[1].x, points[1].y) == (3, 4)
    text = phalanx.Array("c", 5)
    text.value = b"ab"
    assert (text.value, text.raw, text[:]) == (b"ab", b"ab\0\0\0", b"ab\0\0\0")
    big = phalanx.Value(ctypes.c_int.__ctype_be__, 258)
    assert big.value == 258
    assert phalanx.Value(ctypes.c_void_p).value is None


def test_a_structure_has_its_fields_and_those_of_its_bases():
    point = phalanx.Value(Point3, 1, 2.5, 3)
    assert (point.x, point.y, point.z) == (1, 2.5, 3)
    point.x = 7
    assert point.get_obj().x == 7
    assert type(point).__name__ == "SynchronizedPoint3"
    assert type(phalanx.Value(Point3)) is type(point)


def test_a_copy_is_another_object_with_the_same_value():
    for original in (Point(2, 5.0), phalanx.RawValue("i", 5), (ctypes.c_int * 3)(1, 2, 3)):
        new = sharedctypes.copy(original)
        assert type(new) is type(original)
        assert bytes(new) == bytes(original)
        ctypes.memset(ctypes.byref(original), 0, ctypes.sizeof(original))
        assert bytes(new) != bytes(original)


def test_an_object_that_is_not_in_shared_memory_can_have_a_lock_too():
    plain = ctypes.c_int(5)
    value = sharedctypes.synchronized(plain, threading.RLock())
    value.value += 1
    assert plain.value == value.value == 6
    items = sharedctypes.synchronized((ctypes.c_double * 3)(), threading.Lock())
    items[1] = 2.5
    assert items[:] == [0.0, 2.5, 0.0]


def test_objects_are_instances_of_the_standard_librarys_classes():
    standard = multiprocessing.sharedctypes
    assert isinstance(phalanx.Value("i"), standard.Synchronized)
    assert isinstance(phalanx.Array("i", 2), standard.SynchronizedArray)
    assert isinstance(phalanx.Array("c", 2), standard.SynchronizedString)
    assert isinstance(phalanx.Value(Point), standard.SynchronizedBase)


def test_a_subclass_can_have_its_own_init():
    class Counter(sharedctypes.Synchronized):
        def __init__(self, start):
            super().__init__(phalanx.RawValue("i", start))
            self.start = start

    counter = Counter(3)
    counter.value += 1
    assert (counter.value, counter.start) == (4, 3)


class Recorder:
    """A lock that writes down how it is used."""

    def __init__(self):
        self.calls = []

    def acquire(self):
        self.calls.append("acquire")

    def release(self):
        self.calls.append("release")


def test_every_access_takes_the_lock_and_releases_it():
    lock = Recorder()
    value, items = phalanx.Value("i", lock=lock), phalanx.Array("i", 3, lock=lock)
    text, point = phalanx.Array("c", 3, lock=lock), phalanx.Value(Point, lock=lock)
    odd = phalanx.Value(MyInt, lock=lock)

    def boom():
        with pytest.raises(TypeError):
            value.value = "wrong"

    for access in (
        lambda: value.value,
        lambda: setattr(value, "value", 1),
        boom,
        lambda: items[1],
        lambda: items[:],
        lambda: items[::2],
        lambda: items.__setitem__(1, 5),
        lambda: items.__setitem__(slice(0, 2), [1, 2]),
        lambda: items.__setitem__(slice(0, 2), array.array("i", [1, 2])),
        lambda: text.value,
        lambda: text.raw,
        lambda: setattr(text, "value", b"a"),
        lambda: point.x,
        lambda: setattr(point, "x", 1),
        lambda: odd.value,
    ):
        lock.calls.clear()
        access()
        assert lock.calls == ["acquire", "release"]


def test_an_access_waits_for_who_holds_the_lock():
    value = phalanx.Value("i", 1)
    done = threading.Event()

    def read():
        assert value.value == 3
        done.set()

    with value.get_lock():
        value.value = 2  # by the holder: no wait
        thread = threading.Thread(target=read)
        thread.start()
        assert not done.wait(0.05)
        value.value += 1
    assert done.wait(PATIENCE)
    thread.join()


def test_an_object_goes_to_children_and_nowhere_else(ctx):
    queue = ctx.SimpleQueue()
    for it in (ctx.Value("i"), ctx.Array("i", 2), ctx.RawValue("i"), ctx.RawArray("i", 2)):
        with pytest.raises(RuntimeError, match="inheritance"):
            queue.put(it)
        with pytest.raises((RuntimeError, TypeError, ValueError, pickle.PicklingError)):
            pickle.dumps(it)
    queue.close()


def change_all(them):
    value, items, raw, point, text, points = them
    for _ in range(100):
        with value.get_lock():
            value.value += 1
    items[1:3] = [0.5, 0.25]
    raw.value = 7
    point.x, point.y = 3, 4
    text.value = b"next"
    points[1].x = 9


def test_children_share_what_they_are_given(ctx):
    value, items, raw = ctx.Value("i", 5), ctx.Array("d", 4), ctx.RawValue("q")
    point, text, points = ctx.Value(Point), ctx.Array("c", b"text"), ctx.RawArray(Point, 2)
    them = (value, items, raw, point, text, points)
    processes = [ctx.Process(target=change_all, args=(them,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
        process.close()
    assert (value.value, items[:], raw.value) == (205, [0, 0.5, 0.25, 0], 7)
    assert (point.x, point.y, text.value, points[1].x) == (3, 4, b"next", 9)


def fill_all(blocks, start):
    for i, block in enumerate(blocks):
        assert block.value == i
        block.value += start


def test_many_objects_of_one_arena_travel_together(ctx):
    blocks = [ctx.RawValue("i", i) for i in range(2000)]
    assert run(ctx.Process(target=fill_all, args=(blocks, 1000))) == 0
    assert [block.value for block in blocks] == list(range(1000, 3000))


def pass_down(method, value, items):
    value.value += 1
    if method:
        ctx = phalanx.get_context(method)
        assert run(ctx.Process(target=pass_down, args=(None, value, items))) == 0
    items[0] += 1


def test_a_child_passes_on_what_it_was_given(ctx, method):
    value, items = ctx.Value("i"), ctx.Array("i", 100_000)
    assert run(ctx.Process(target=pass_down, args=(method, value, items))) == 0
    assert (value.value, items[0]) == (2, 2)


def test_what_a_forked_child_makes_is_not_its_parents():
    ctx = phalanx.get_context("fork")
    before = [ctx.RawValue("i", 1) for _ in range(10)]
    child = ctx.Process(target=make_and_fill, args=(before,))
    child.start()
    later = [ctx.RawValue("i", 2) for _ in range(10)]
    child.join(PATIENCE)
    assert child.exitcode == 0
    child.close()
    assert {value.value for value in before} == {1}
    assert {value.value for value in later} == {2}


def make_and_fill(before):
    made = [phalanx.RawValue("i", 3) for _ in range(1000)]
    assert {value.value for value in before} == {1}
    assert {value.value for value in made} == {3}


def test_pool_workers_share_what_their_initializer_is_given(ctx):
    value = ctx.Value("i")
    with ctx.Pool(2, keep_shared, (value,)) as pool:
        pool.map(add_shared, range(10))
        pool.close()
        pool.join()
    assert value.value == 45


def keep_shared(value):
    global shared  # noqa: PLW0603
    shared = value


def add_shared(n):
    with shared.get_lock():
        shared.value += n


def test_nothing_has_a_name():
    def named():
        return Path("/proc/self/maps").read_text().count("/dev/shm/")

    before = named()
    kept = [phalanx.RawArray("d", 100_000), phalanx.RawValue("i"), heap.BufferWrapper(1 << 20)]
    assert named() == before
    del kept


def test_descriptors_do_not_grow_with_the_number_of_objects():
    def count():
        return len(os.listdir("/proc/self/fd"))

    keep = [phalanx.RawValue("i")]
    before = count()
    keep += [phalanx.RawValue("i") for _ in range(50_000)]
    assert count() - before < 10


def test_a_large_array_is_given_back():
    def mapped():
        return Path("/proc/self/maps").read_text().count("phalanx-block")

    before = mapped()
    items = phalanx.Array("c", 10 << 20)
    assert mapped() == before + 1
    del items
    assert mapped() == before


# What deaths leave.


def hold_and_die(value, log: Log):
    value.get_lock().acquire()
    value.value += 1
    log.add("held")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "access",
    [
        lambda value, items: value.value == 1,
        lambda value, items: not setattr(value, "value", 5),
        lambda value, items: items[0] == 0,
        lambda value, items: items[:] == [0, 0],
        lambda value, items: not items.__setitem__(0, 5),
    ],
    ids=["get", "set", "element", "slice", "set element"],
)
def test_an_access_goes_on_when_the_holder_is_killed_and_says_so(ctx, log, access):
    value = ctx.Value("i")
    items = ctx.Array("i", 2, lock=value.get_lock())
    holder = ctx.Process(target=hold_and_die, args=(value, log))
    holder.start()
    wait_for(log, "held")
    with pytest.warns(phalanx.AbandonedLock, match=str(holder.pid)):
        assert access(value, items)
    holder.join(PATIENCE)
    holder.close()
    assert value.get_lock().acquire(timeout=PATIENCE)  # it was released
    value.get_lock().release()


def make_and_die(method, log: Log):
    ctx = phalanx.get_context(method)
    value = ctx.Value("i", 41)
    items = ctx.Array("i", 100_000)
    items[99_999] = 7
    child = ctx.Process(target=go_on, args=(value, items, os.getpid(), log))
    child.start()
    wait_for(log, "started")
    os.kill(os.getpid(), signal.SIGKILL)


def go_on(value, items, maker, log: Log):
    log.add("started")
    wait_until(lambda: os.getppid() != maker or not os.path.exists(f"/proc/{maker}"), "its end")
    value.value += 1
    log.add(f"{value.value} {items[99_999]}")


def test_an_object_outlives_its_maker(ctx, method, log):
    maker = ctx.Process(target=make_and_die, args=(method, log))
    assert run(maker) == -signal.SIGKILL
    wait_until(lambda: "42 7" in log.lines(), "the child that goes on")


def write_for_ever(raw, log: Log):
    log.add("writing")
    while True:
        raw.value = -1
        raw.value = 0


def test_a_death_in_a_write_leaves_the_old_or_the_new_value(ctx, log):
    value = ctx.Value("q", lock=False)
    guarded = sharedctypes.synchronized(value, Recorder.__new__(Unlocked))
    for round_ in range(5):
        writer = ctx.Process(target=write_for_ever, args=(value, log))
        writer.start()
        wait_until(lambda n=round_: log.lines().count("writing") > n, "the writer")
        seen = {guarded.value for _ in range(1000)}
        writer.kill()
        writer.join()
        writer.close()
        assert seen | {value.value} <= {0, -1}


class Unlocked:
    """The lock of a value that needs none."""

    def acquire(self):
        pass

    def release(self):
        pass


def sleep_with(value, items, log: Log):
    value.value = 5
    items[0] = 6
    log.add("has them")
    signal.pause()


def test_a_child_that_is_killed_leaves_nothing_and_what_it_wrote_stays(ctx, log):
    value, items = ctx.Value("i"), ctx.Array("i", 100_000)
    child = ctx.Process(target=sleep_with, args=(value, items, log))
    child.start()
    wait_until(log.lines, "the child")
    child.kill()
    child.join()
    child.close()
    assert (value.value, items[0]) == (5, 6)


def test_a_fork_by_whoever_can_use_and_drop_what_it_inherits():
    value, items = phalanx.Value("i", 1), phalanx.Array("i", 100_000)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            value.value += 1
            items[5] = 5
            del items
            assert phalanx.RawArray("i", 100_000)[5] == 0
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (value.value, items[5]) == (2, 5)


def test_a_standard_process_of_ours_takes_what_the_heap_makes(method):
    ctx = multiprocessing.get_context(method)
    wrapper = heap.BufferWrapper(100_000)
    process = ctx.Process(target=write_block, args=(wrapper,))
    assert run(process) == 0
    assert wrapper.create_memoryview()[99_999] == 8
    if method == "forkserver":
        multiprocessing.forkserver._forkserver._stop()


def write_block(wrapper):
    wrapper.create_memoryview()[99_999] = 8
