"""Shared memory with names: what it is, when its name goes, and what deaths leave of it."""

import contextlib
import errno
import itertools
import multiprocessing
import multiprocessing.shared_memory
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import phalanx
import pytest
from phalanx import shared_memory
from phalanx.shared_memory import ShareableList, SharedMemory
from tasks import Log, wait_for, wait_until

PATIENCE = 30  # seconds


@pytest.fixture
def name() -> Iterator[str]:
    """A name that is free, and free again afterwards."""
    name = f"phalanx-test-{os.getpid()}"
    assert not exists(name)
    yield name
    left = exists(name)
    if left:
        os.unlink(f"/dev/shm/{name}")
    assert not left, "the name is still there"


@pytest.fixture
def _no_name_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Names that are made up are this test's own, and gone in the end."""
    prefix, counter = f"phalanx-test-{os.getpid()}-", itertools.count()
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: f"/{prefix}{next(counter)}")
    yield
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


@pytest.fixture
def block() -> Iterator[SharedMemory]:
    block = SharedMemory(create=True, size=1000)
    yield block
    block.close()
    with contextlib.suppress(FileNotFoundError):
        block.unlink()


def exists(name: str) -> bool:
    return os.path.exists(f"/dev/shm/{name.removeprefix('/')}")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_new_block_is_zeros_of_the_size_that_was_asked_for(name):
    block = SharedMemory(name, create=True, size=5000)
    try:
        assert (block.name, block.size, len(block.buf)) == (name, 5000, 5000)
        assert (block.buf.format, block.buf.readonly) == ("B", False)
        assert bytes(block.buf) == bytes(5000)
        assert repr(block) == f"SharedMemory({name!r}, size=5000)"
        assert os.stat(f"/dev/shm/{name}").st_mode & 0o777 == 0o600
        assert isinstance(block, multiprocessing.shared_memory.SharedMemory)
    finally:
        block.close()
        block.unlink()


def test_who_attaches_has_the_same_bytes(block):
    other = SharedMemory(block.name)
    other.buf[10:15] = b"hello"
    assert bytes(block.buf[10:15]) == b"hello"
    assert SharedMemory(block.name, size=5).size == 1000
    other.close()
    assert other.buf is None
    other.close()
    assert block.buf[10] == ord("h")


def test_a_made_up_name_is_not_one_that_is_taken(monkeypatch, block):
    names = iter([block._name, f"/psm_{os.getpid()}"])
    monkeypatch.setattr(shared_memory, "_make_filename", lambda: next(names))
    other = SharedMemory(create=True, size=1)
    assert other._name == f"/psm_{os.getpid()}"
    other.close()
    other.unlink()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"create": True, "size": -1}, ValueError, "size"),
        ({"create": True, "size": 0}, ValueError, "size"),
        ({"create": True}, ValueError, "size"),
        ({"create": True, "size": 1.5}, TypeError, None),
        ({"create": True, "size": "8"}, TypeError, None),
        ({"name": None}, ValueError, "name"),
        ({"name": 5}, TypeError, None),
        ({"name": "a\0b"}, ValueError, "null"),
        ({"name": "a\0b", "create": True, "size": 8}, ValueError, "null"),
        ({"name": "", "create": True, "size": 8}, OSError, None),
        ({"name": "a/b", "create": True, "size": 8}, OSError, None),
        ({"name": "x" * 300, "create": True, "size": 8}, (OSError, ValueError), None),
        ({"name": "\udcff", "create": True, "size": 8}, ValueError, None),
        ({"name": "phalanx-test-nobody"}, FileNotFoundError, "phalanx-test-nobody"),
    ],
)
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.usefixtures("_no_name_is_left")
def test_wrong_arguments_are_errors_and_leave_nothing(arguments, error, match, track):
    before = descriptors()
    with pytest.raises(error, match=match):
        SharedMemory(**arguments, track=track)
    assert descriptors() == before
    name = str(arguments.get("name") or "none")
    assert "/" in name or "\0" in name or not exists(name.encode("utf8", "replace").decode())


def test_a_name_that_is_taken_is_an_error_and_stays_its_owners(block):
    with pytest.raises(FileExistsError, match=block.name):
        SharedMemory(block.name, create=True, size=10)
    assert exists(block.name)
    assert block.size == 1000


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("size", [1 << 45, 1 << 62])
def test_more_than_there_is_room_for_is_an_error_at_once_and_leaves_nothing(name, size, track):
    before = descriptors()
    with pytest.raises(OSError, match=f"{size}|too large") as caught:
        SharedMemory(name, create=True, size=size, track=track)
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert not exists(name)
    assert descriptors() == before


def test_the_memory_of_a_block_is_there_from_the_start(block):
    large = SharedMemory(create=True, size=40 << 20)
    try:
        assert os.stat(f"/dev/shm/{large.name}").st_blocks * 512 >= 40 << 20
    finally:
        large.close()
        large.unlink()


def test_a_name_is_removed_once(block):
    block.unlink()
    assert not exists(block.name)
    with pytest.raises(FileNotFoundError):
        block.unlink()
    block.buf[0] = 1  # who has it keeps it
    with pytest.raises(FileNotFoundError):
        SharedMemory(block.name)


def test_a_view_of_the_bytes_keeps_them(block):
    view = block.buf[2:5]
    with pytest.raises(BufferError):
        block.close()
    view[:] = b"abc"
    del block._buf
    block.__del__()
    assert bytes(view) == b"abc"
    view.release()


def test_a_block_becomes_larger_where_it_is(block):
    other = SharedMemory(block.name)
    size = block.size
    block.buf[:3] = b"abc"
    view = block.buf[:3]
    block.resize(1 << 20)
    assert (block.size, len(block.buf), other.size) == (1 << 20, 1 << 20, size)
    assert bytes(block.buf[:3]) == b"abc"
    assert not any(block.buf[size:])
    view[0] = ord("x")  # it is a view of the same bytes
    block.buf[-1] = 7
    other.resize()
    assert (other.size, other.buf[-1], bytes(other.buf[:3])) == (1 << 20, 7, b"xbc")
    assert SharedMemory(block.name).size == 1 << 20
    view.release()
    other.close()


@pytest.mark.parametrize(
    ("size", "error", "match"),
    [
        (1, ValueError, "cannot be cut to 1"),
        (-1, ValueError, "cannot be cut to -1"),
        ("2", TypeError, "'str'"),
        (1 << 50, OSError, "df -h /dev/shm"),
    ],
)
def test_a_size_that_cannot_be_leaves_the_block_as_it_is(block, size, error, match):
    block.buf[:3] = b"abc"
    before = block.size
    with pytest.raises(error, match=match):
        block.resize(size)
    assert (block.size, bytes(block.buf[:3])) == (before, b"abc")
    assert os.stat(f"/dev/shm/{block.name}").st_size == before


def test_a_closed_block_is_not_resized(block):
    other = SharedMemory(block.name)
    other.close()
    with pytest.raises(ValueError, match="is closed"):
        other.resize(1 << 20)


def test_numpy_arrays_outlive_the_object_without_a_word():
    script = """
        import numpy, sys
        from phalanx.shared_memory import SharedMemory
        block = SharedMemory(create=True, size=80)
        array = numpy.frombuffer(block.buf, dtype="d")
        block.unlink()
        del block
        array[:] = 1.5
        assert array.sum() == 15
        other = SharedMemory(create=True, size=80)
        kept = numpy.frombuffer(other.buf, dtype="d")
        other.unlink()
    """
    assert run_script(script) == (0, "", "")


def test_objects_are_closed_when_they_go():
    before = descriptors()
    for _ in range(50):
        block = SharedMemory(create=True, size=10)
        block.unlink()
    del block
    assert descriptors() == before


def test_a_pickled_block_is_the_block_of_that_name(block):
    block.buf[0] = 7
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(block, protocol))
        assert (other.name, other.buf[0], other._track) == (block.name, 7, True)
        other.close()
    untracked = SharedMemory(block.name, track=False)
    other = pickle.loads(pickle.dumps(untracked))
    assert (other.name, other._track) == (block.name, False)


def write_five(block, at):
    block.buf[at] = 5
    block.close()


def test_blocks_are_arguments_of_processes_of_both_packages(method, block):
    for at, package in enumerate((phalanx, multiprocessing)):
        process = package.get_context(method).Process(target=write_five, args=(block, at))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        process.close()
    assert bytes(block.buf[:2]) == b"\5\5"
    if method == "forkserver":
        multiprocessing.forkserver._forkserver._stop()


def test_the_standard_librarys_object_finds_ours_and_ours_its(block):
    block.buf[3] = 9
    theirs = multiprocessing.shared_memory.SharedMemory(block.name)
    assert theirs.buf[3] == 9
    theirs.close()
    theirs = multiprocessing.shared_memory.SharedMemory(create=True, size=10)
    ours = SharedMemory(theirs.name)
    ours.buf[1] = 4
    assert theirs.buf[1] == 4
    ours.close()
    theirs.close()
    theirs.unlink()


# Lists.

ITEMS = ["howdy", b"bytes", -273.154, 100, None, True, 1 << 62, "encodés", ""]


@pytest.fixture
def made() -> Iterator[ShareableList]:
    made = ShareableList(ITEMS)
    yield made
    made.shm.close()
    with contextlib.suppress(FileNotFoundError):
        made.shm.unlink()


def test_a_list_has_the_items_that_it_was_made_of(made):
    assert list(made) == ITEMS
    assert [made[i - len(ITEMS)] for i in range(len(ITEMS))] == ITEMS
    assert (len(made), made.count(None), made.index(100)) == (len(ITEMS), 1, 3)
    assert repr(made) == f"ShareableList({ITEMS}, name={made.shm.name!r})"
    assert ShareableList[int].__origin__ is ShareableList


def test_an_item_is_replaced_by_what_needs_no_more_room(made):
    for position, value in enumerate((b"12345678", "x", None, "8 bytes!", 5, 2.5, False, 1, "x")):
        made[position] = value
        assert made[position] == value
        assert type(made[position]) is type(value)
    with pytest.raises(ValueError, match="exceeds available storage"):
        made[3] = "nine byte"
    with pytest.raises(KeyError, match="list"):
        made[3] = []
    with pytest.raises(struct.error):
        made[3] = 1 << 64
    assert made[3] == "8 bytes!"


def test_both_packages_read_each_others_lists(made):
    theirs = multiprocessing.shared_memory.ShareableList(name=made.shm.name)
    assert list(theirs) == ITEMS
    assert theirs.format == made.format
    theirs[0], made[3] = "theirs", "ours"
    assert (made[0], theirs[3]) == ("theirs", "ours")
    theirs.shm.close()
    theirs = multiprocessing.shared_memory.ShareableList([1, "two", None])
    ours = ShareableList(name=theirs.shm.name)
    assert list(ours) == [1, "two", None]
    ours.shm.close()
    theirs.shm.close()
    theirs.shm.unlink()


@pytest.mark.usefixtures("_no_name_is_left")
def test_wrong_items_are_errors_and_leave_nothing():
    with pytest.raises(KeyError, match="object"):
        ShareableList([1, object()])
    with pytest.raises(struct.error):
        ShareableList([1 << 64])
    with pytest.raises(TypeError):
        ShareableList(5)


def test_an_index_outside_is_an_error(made):
    for index in (len(ITEMS), -len(ITEMS) - 1):
        with pytest.raises(IndexError, match="index out of range"):
            made[index]
        with pytest.raises(IndexError, match="assignment index out of range"):
            made[index] = 1
        with pytest.raises(IndexError):
            made._get_packing_format(index)
    with pytest.raises(ValueError, match="not in this"):
        made.index("nobody")


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, struct.pack("qqq", 1, 5, 2), b"\x01" * 99])
def test_a_block_without_a_list_is_an_error(block, content):
    block.buf[: len(content)] = content
    if not content:
        assert list(ShareableList(name=block.name)) == []  # zeros are an empty list
        return
    with pytest.raises(ValueError, match="no ShareableList"):
        ShareableList(name=block.name)


def test_a_list_of_any_iterable_and_an_empty_one():
    for given, expected in (((), []), ("ab", ["a", "b"]), (range(3), [0, 1, 2]), (None, [])):
        made = ShareableList(given)
        assert list(made) == expected
        made.shm.close()
        made.shm.unlink()


# What deaths leave: each script is a program of its own, with a resource tracker of its own.

PREAMBLE = """
    import os, signal, sys
    from phalanx import shared_memory
    from phalanx.shared_memory import SharedMemory

    def die(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    class Instead:
        '''A module with some of its functions exchanged.'''
        def __init__(self, module, **functions):
            self.__dict__.update(vars(module), **functions)
"""


def start_script(script: str, *arguments: str) -> subprocess.Popen:
    code = textwrap.dedent(PREAMBLE) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_script(script: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; these end only when the script's tracker has ended, too."""
    with start_script(script, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


DEATHS = {
    "before the block is there": """
real = m._posixshmem.shm_open
def die_or_open(name, flags, mode):
    return die() if flags & os.O_CREAT else real(name, flags, mode=mode)
m._posixshmem = Instead(m._posixshmem, shm_open=die_or_open)""",
    "when the block is there": """
real = m._posixshmem.shm_open
def open_and_die(name, flags, mode):
    fd = real(name, flags, mode=mode)
    if flags & os.O_CREAT:
        die()
    return fd
m._posixshmem = Instead(m._posixshmem, shm_open=open_and_die)""",
    "before it has memory": "m._allocate = die",
    "before it is mapped": "m.mmap = Instead(m.mmap, mmap=die)",
    "when it is made": "",
}


@pytest.mark.parametrize("when", DEATHS)
def test_a_creator_that_is_killed_leaves_no_name(name, when):
    create = f"SharedMemory({name!r}, create=True, size=100)"
    code, _, err = run_script(f"m = shared_memory\n{DEATHS[when]}\nblock = {create}\ndie()")
    assert code == -signal.SIGKILL
    assert "leaked shared_memory" in err
    assert not exists(name)


def test_who_is_killed_in_unlink_leaves_no_name(name):
    script = f"""
        block = SharedMemory({name!r}, create=True, size=100)
        module = shared_memory.resource_tracker
        shared_memory.resource_tracker = Instead(module, unregister=die)
        block.unlink()
    """
    assert run_script(script)[0] == -signal.SIGKILL
    assert not exists(name)


def test_a_block_of_track_false_stays_until_somebody_removes_it(name):
    create = f"SharedMemory({name!r}, create=True, size=100, track=False)"
    code, _, err = run_script(f"block = {create}\nblock.buf[0] = 8\ndie()")
    assert (code, err) == (-signal.SIGKILL, "")
    block = SharedMemory(name, track=False)
    assert block.buf[0] == 8
    block.close()
    block.unlink()


def test_who_attaches_from_outside_removes_the_name_unless_it_says_track_false(name, block):
    attach = "SharedMemory(sys.argv[1], track={}).close()"
    assert run_script(attach.format(False), block.name) == (0, "", "")
    assert exists(block.name)
    code, _, err = run_script(attach.format(True), block.name)
    assert code == 0
    assert "leaked shared_memory" in err
    assert not exists(block.name)


def attach_and_wait(name, log: Log):
    block = SharedMemory(name)
    log.add("attached")
    wait_for(log, "end")
    log.add(f"read {block.buf[0]}")
    os.kill(os.getpid(), signal.SIGKILL)


def create_and_die(method, name, log: Log):
    block = SharedMemory(name, create=True, size=10)
    block.buf[0] = 6
    process = phalanx.get_context(method).Process(target=attach_and_wait, args=(name, log))
    process.start()
    wait_for(log, "attached")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_block_stays_until_the_last_of_its_program_is_killed(name, method, log):
    script = f"""
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from tasks import Log
        from test_shared_memory import create_and_die
        if __name__ == "__main__":
            create_and_die({method!r}, {name!r}, Log(Path({log.path!r})))
    """
    with start_script(script) as process:
        process.wait(PATIENCE)
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
        assert log.lines() == ["attached"]
        assert exists(name)
        log.add("end")
        wait_until(lambda: not exists(name), "the tracker")
        assert log.lines() == ["attached", "end", "read 6"]
        process.communicate(timeout=PATIENCE)


def test_a_child_that_is_killed_leaves_the_block_to_its_parent(ctx, block, log):
    process = ctx.Process(target=attach_and_wait, args=(block.name, log))
    process.start()
    wait_for(log, "attached")
    process.kill()
    process.join()
    process.close()
    assert exists(block.name)
    block.buf[0] = 1


def set_and_die(made):
    real = shared_memory._FORMAT

    class Dying:
        size = real.size
        unpack_from = staticmethod(real.unpack_from)

        @staticmethod
        def pack_into(*args):
            real.pack_into(*args)
            os.kill(os.getpid(), signal.SIGKILL)

    shared_memory._FORMAT = Dying
    made[3] = 2.5


def test_a_death_in_a_lists_write_leaves_the_other_items(ctx, made):
    process = ctx.Process(target=set_and_die, args=(made,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL
    process.close()
    assert made[3] == struct.unpack("d", struct.pack("q", 100))[0]  # the new type, the old bytes
    made[3] = 7
    assert list(made) == [*ITEMS[:3], 7, *ITEMS[4:]]
