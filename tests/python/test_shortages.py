"""What is said when the system is short of something, and that all goes on when it is there again.

Each program runs in a session of its own under one shortage. It asserts by itself and says "done";
afterwards no process of it is left, and no memory.
"""

import re
from collections.abc import Callable
from pathlib import Path

import phalanx
import pytest
from phalanx import ProcessPoolExecutor as Executor
from phalanx.shared_memory import SharedMemory
from programs import Program
from shortages import FORBIDDEN

HERE = str(Path(__file__).parent)
ROOT = Path(__file__).parent.parent.parent

PRELUDE = f"""\
import errno, gc, resource
sys.path.insert(0, {HERE!r})
from shortages import *
from phalanx.shared_memory import SharedMemory, ShareableList
def run_one(target=abs, args=(1,)):
    process = ctx.Process(target=target, args=args)
    process.start()
    process.join()
    return process.exitcode
def warm_up():
    # Modules that are imported when they are needed first, and the processes that stay.
    pool = ctx.Pool(2)
    assert pool.map(abs, [-1]) == [1]
    assert run_one() == 0 and len(pool.stats()) == 2
    ctx.SimpleQueue(), ctx.Queue(), ctx.Pipe(), ctx.Lock(), ctx.Array('b', 1)
    SharedMemory(create=True, size=1).unlink()
    ctx.Manager().shutdown()
    gc.collect()
    return pool
"""


@pytest.fixture
def short(run: Callable[[str], Program]) -> Callable[[str], None]:
    """Run a program that asserts by itself, to its end."""

    def see(body: str) -> None:
        program = run(f"{PRELUDE}{body}\nsay('done')")
        code = program.end()
        if code == FORBIDDEN:
            pytest.skip(program.errors().strip())
        if (code, program.errors(), program.output) != (0, "", "done\n"):
            pytest.fail(f"exit code {code}\n{program.output}{program.errors()}", pytrace=False)

    return see


# -- descriptors


def test_without_descriptors_each_error_names_the_limit_and_the_pool_works_on(short):
    short("""\
pool = warm_up()
before = descriptors()
makers = {
    "pool": lambda: ctx.Pool(2),
    "process": run_one,
    "queue": ctx.Queue,
    "simple queue": ctx.SimpleQueue,
    "pipe": ctx.Pipe,
    "memory": lambda: SharedMemory(create=True, size=100),
    "manager": ctx.Manager,
    "large array": lambda: ctx.RawArray('b', 64 << 20),
}
with few_descriptors(0):
    for name, make in makers.items():
        with refused(errno.EMFILE, "RLIMIT_NOFILE", "ulimit -n"):
            make()
    assert pool.map(abs, [-1, -2]) == [1, 2]
    assert len(pool.apply(bytes, (4 << 20,))) == 4 << 20
assert run_one() == 0
assert pool.map(abs, [-1, -2]) == [1, 2]
become(lambda: descriptors() == before, "descriptors")
""")


def test_however_many_descriptors_are_missing_there_is_a_whole_pool_or_none(short):
    short("""\
pool = warm_up()
before, family = descriptors(), children()
made = 0
for free in range(1, 24):
    with few_descriptors(free):
        try:
            other = ctx.Pool(2)
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            assert "RLIMIT_NOFILE" in str(error), error
        else:
            made += 1
            other.terminate()
            other.join()
            del other
        try:
            assert run_one() == 0
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            assert "RLIMIT_NOFILE" in str(error), error
    become(lambda: descriptors() == before, f"descriptors after {free}")
    become(lambda: children() == family, f"children after {free}")
assert 0 < made < 23
assert pool.map(abs, [-1]) == [1]
assert run_one() == 0
""")


def test_a_pool_that_cannot_replace_its_workers_goes_on_with_those_that_it_has(short):
    short("""\
pool = warm_up()
one, two = [worker.pid for worker in pool.stats()]
with few_descriptors(0):
    held = []
    os.kill(one, signal.SIGKILL)
    become(lambda: two in [w.pid for w in pool.stats()] != [one, two], "the death")
    assert pool.map_async(abs, [-1, -2], 1).get(20) == [1, 2]
assert pool.map_async(abs, [-1, -2], 1).get(20) == [1, 2]
become(lambda: all(worker.pid for worker in pool.stats()), "both workers")
""")


def test_a_pool_that_has_no_worker_and_gets_none_says_so_and_works_later(short):
    short("""\
pool = warm_up()
before = descriptors()
with few_descriptors(0):
    pids = [worker.pid for worker in pool.stats()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    become(lambda: not any(map(is_there, pids)), "their deaths")
    held = []
    try:  # what the dead have left is taken, too
        while True: held.append(os.dup(1))
    except OSError: pass
    with refused(errno.EMFILE, "failed to start a worker", "RLIMIT_NOFILE"):
        pool.map_async(abs, [-1]).get(20)
    with refused(errno.EMFILE, "failed to start a worker", "RLIMIT_NOFILE"):
        pool.apply(abs, (-1,))
    for fd in held: os.close(fd)
assert pool.map_async(abs, [-1, -2]).get(20) == [1, 2]
become(lambda: all(worker.pid for worker in pool.stats()), "both workers")
become(lambda: descriptors() == before, "descriptors")
""")


def test_ten_thousand_workers_are_an_error_that_leaves_none_of_them(short):
    short("""\
pool = warm_up()
before, family = descriptors(), children()
with few_descriptors(30), refused(errno.EMFILE, "RLIMIT_NOFILE", "ulimit -n"):
    ctx.Pool(10_000)
become(lambda: descriptors() == before, "descriptors")
become(lambda: children() == family, "children")
assert pool.map(abs, [-1]) == [1]
""")


def test_a_supervisor_that_cannot_start_a_child_says_what_is_short(short):
    short("""\
warm_up()
def supervise():
    child = phalanx.ChildSpec(name="sleeper", target=time.sleep, args=(600,))
    with phalanx.Supervisor([child], context=ctx) as supervisor:
        assert supervisor.children()[0].status == "running"
supervise()
before, family, refusals = descriptors(), children(), 0
for free in range(0, 20):
    with few_descriptors(free):
        try:
            supervise()
        except (OSError, phalanx.SupervisorFailed) as error:
            assert "RLIMIT_NOFILE" in str(error), error
            refusals += 1
    become(lambda: children() == family, f"children after {free}")
    become(lambda: descriptors() == before, f"descriptors after {free}")
assert 0 < refusals < 20
supervise()
""")


# -- processes and threads


def test_without_processes_each_error_names_the_limit_and_the_pool_works_on(short):
    short("""\
become_somebody()
pool = warm_up()
before = descriptors()
family = children()
with few_processes(0):
    # The template has the limit that it was started with; a thread of ours is missing there.
    kind = OSError if ctx.get_start_method() != "forkserver" else RuntimeError
    number = errno.EAGAIN if kind is OSError else None
    with refused(number, "RLIMIT_NPROC", "ulimit -u", "pids.max", kind=kind):
        ctx.Pool(3)
    if kind is OSError:
        with refused(errno.EAGAIN, "RLIMIT_NPROC", "ulimit -u", "pids.max"):
            run_one()
        with refused(errno.EAGAIN, "RLIMIT_NPROC", "ulimit -u", "pids.max"):
            ctx.Manager()
    with refused(None, "RLIMIT_NPROC", kind=RuntimeError):
        pool.imap(abs, iter([-1]))  # read by a thread of its own
    with refused(None, "RLIMIT_NPROC", kind=(OSError, RuntimeError)):
        phalanx.ProcessPoolExecutor(2, mp_context=ctx).submit(abs, -1)
    assert pool.map(abs, [-1, -2], 1) == [1, 2]
    become(lambda: children() == family, "children")
    become(lambda: descriptors() == before, "descriptors")
for more in range(1, 6):  # the first workers find a place, the last does not; or its thread
    with few_processes(more):
        try:
            other = ctx.Pool(3)
        except (OSError, RuntimeError) as error:
            assert "RLIMIT_NPROC" in str(error), error
        else:
            other.terminate()
            other.join()
            del other
    become(lambda: children() == family, "children")
    become(lambda: descriptors() == before, "descriptors")
assert run_one() == 0
assert list(pool.imap(abs, iter([-1]))) == [1]
with phalanx.ProcessPoolExecutor(2, mp_context=ctx) as executor:
    assert executor.submit(abs, -1).result() == 1
""")


def test_an_executor_goes_on_with_the_workers_that_it_could_start(short):
    short("""\
become_somebody()
warm_up()
with phalanx.ProcessPoolExecutor(2, mp_context=ctx) as executor:
    assert executor.submit(abs, -1).result() == 1
    with few_processes(0):
        assert [f.result() for f in [executor.submit(abs, -n) for n in range(9)]] == list(range(9))
    assert list(executor.map(abs, [-1, -2])) == [1, 2]
""")


# -- memory


def test_without_memory_each_error_says_so_and_the_pool_works_on(short):
    short("""\
pool = warm_up()
large = bytes(80 << 20)
before = os.listdir('/dev/shm')
with little_memory(40 << 20):
    words = "failed to", "RLIMIT_AS", "ulimit -v"
    with refused(errno.ENOMEM, *words):
        pool.apply(len, (large,))
    with refused(errno.ENOMEM, *words):
        pool.apply(bytes, (80 << 20,))
    with refused(errno.ENOMEM, *words):
        ctx.Queue().put(large)
    with refused(errno.ENOMEM, *words):
        ctx.SimpleQueue().put(large)
    with refused(errno.ENOMEM, *words):
        ctx.RawArray('b', 80 << 20)
    with refused(errno.ENOMEM, *words):
        SharedMemory(create=True, size=80 << 20)
    assert pool.map(abs, [-1, -2], 1) == [1, 2]
assert os.listdir('/dev/shm') == before
assert pool.apply(len, (large,)) == 80 << 20
assert pool.apply(bytes, (80 << 20,)) == large
queue = ctx.SimpleQueue()
queue.put(large)
assert queue.get() == large
""")


def test_more_memory_than_there_is_anywhere_is_an_error_at_once(short):
    short("""\
pool = warm_up()
with refused(errno.ENOSPC, str(1 << 40), "/dev/shm", "remount"):
    SharedMemory(create=True, size=1 << 40)
with refused(errno.ENOMEM, "failed to allocate shared memory"):
    ctx.RawArray('b', 1 << 40)
with refused(errno.ENOMEM, "failed to allocate shared memory"):
    ctx.Array('d', 1 << 37)
with refused(None, kind=MemoryError):
    pool.apply(bytes, (1 << 50,))
assert pool.map(abs, [-1, -2], 1) == [1, 2]
""")


# -- file systems

# What needs no name goes on whatever /dev/shm is.
NAMELESS = """\
with ctx.Pool(2) as pool:
    assert pool.apply(len, (bytes(70 << 20),)) == 70 << 20
    assert len(pool.apply(bytes, (70 << 20,))) == 70 << 20
    with refused(None, "exited with code 3", kind=phalanx.WorkerDied):
        pool.apply(os._exit, (3,))
    assert pool.map(abs, [-1, -2], 1) == [1, 2]
queue = ctx.Queue()
queue.put(bytes(70 << 20))
assert len(queue.get()) == 70 << 20
array = ctx.Array('b', 70 << 20)
array[-1] = 1
lock, event = ctx.Lock(), ctx.Event()
process = ctx.Process(target=event.set)
with lock:
    process.start()
    assert event.wait(20)
process.join()
assert process.exitcode == 0
with ctx.Manager() as manager:
    assert manager.list([1])[0] == 1
with phalanx.ProcessPoolExecutor(1, mp_context=ctx) as executor:
    assert executor.submit(abs, -1).result() == 1
"""


def test_a_small_dev_shm_is_too_small_for_named_blocks_alone(short):
    short(f"""\
mounts_of_our_own()
mount('/dev/shm', 'size=64m')
{NAMELESS}
with refused(errno.ENOSPC, str(100 << 20), "/dev/shm", "remount"):
    SharedMemory(create=True, size=100 << 20)
assert os.listdir('/dev/shm') == []
block = SharedMemory(create=True, size=60 << 20)
block.buf[:] = bytes(range(256)) * (60 << 12)  # all of it is there
with refused(errno.ENOSPC, str(8 << 20), "/dev/shm"):
    SharedMemory(create=True, size=8 << 20)
with refused(errno.ENOSPC, "/dev/shm"):
    ShareableList([b'x' * (8 << 20)])
block.close()
block.unlink()
assert os.listdir('/dev/shm') == []
""")


def test_a_dev_shm_that_cannot_be_written_or_is_not_there_is_missed_by_names_alone(short):
    short(f"""\
mounts_of_our_own()
mount('/dev/shm', flags=MS_RDONLY)
with refused(errno.EROFS, "/psm_"):
    SharedMemory(create=True, size=100)
without_shm()
{NAMELESS}
with refused(errno.ENOENT, "/psm_"):
    SharedMemory(create=True, size=100)
with refused(errno.ENOENT, "/psm_"):
    ShareableList([1])
""")


HELD_BY_THE_DEAD = """\
import warnings
lock = ctx.Lock()
process = ctx.Process(target=lock.acquire)
process.start()
assert phalanx.connection.wait([process.sentinel], 20)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    assert lock.acquire(timeout=20)  # though nobody has reaped its holder
assert told[0].category is phalanx.AbandonedLock
process.join()
"""


def test_without_proc_all_goes_on(short):
    short(f"""\
import phalanx.connection
import select
reader, writer = os.pipe()
os.set_inheritable(writer, True)
mounts_of_our_own()
mount('/proc')
assert os.listdir('/proc') == []
{NAMELESS}
{HELD_BY_THE_DEAD}
SharedMemory(create=True, size=100).unlink()
if ctx.get_start_method() != "fork":  # what may be inherited is not
    with ctx.Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
        os.close(writer)
        assert select.select([reader], [], [], 5)[0]  # nobody else has the other end
""")


def test_where_temporary_files_have_no_room_the_error_says_where_and_pools_need_none(short):
    short("""\
import tempfile
from phalanx.connection import Listener
mounts_of_our_own()
place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "full")
os.mkdir(place)
mount(place, 'nr_inodes=2')
os.environ["TMPDIR"] = place
assert tempfile.gettempdir() == place
open(os.path.join(place, "last"), "w").close()
words = "failed to make a listener", "TMPDIR", place
with refused(errno.ENOSPC, *words):
    Listener()
if ctx.get_start_method() == "fork":
    with refused(errno.ENOSPC, *words):
        ctx.Manager()
else:  # the new interpreter looks for a place by itself
    ctx.Manager().shutdown()
become(lambda: not phalanx.active_children(), "the servers' ends")
with ctx.Pool(2) as pool:
    assert pool.map(abs, [-1, -2], 1) == [1, 2]
queue = ctx.Queue()
queue.put(1)
assert queue.get() == 1
os.remove(os.path.join(place, "last"))
mount(place, flags=MS_RDONLY)
with refused(errno.EROFS, place):
    Listener()
tempfile.tempdir = None
tempfile._candidate_tempdir_list = lambda: [place]
with refused(errno.ENOENT, "No usable temporary directory", place):
    Listener()
""")


# -- system calls


@pytest.mark.parametrize(("call", "number"), [("pidfd_open", "ENOSYS"), ("memfd_create", "EPERM")])
def test_a_system_call_that_is_missing_is_named_by_the_first_who_needs_it(short, call, number):
    short(f"""\
forbid("{call}", errno.{number})
words = "{call}(2) is needed", "seccomp"
with refused(errno.{number}, *words):
    with ctx.Pool(2) as pool:
        pool.map(abs, [-1])
assert not phalanx.active_children()
if "{call}" == "pidfd_open" or ctx.get_start_method() != "fork":
    with refused(errno.{number}, *words):
        run_one()
if "{call}" == "memfd_create":
    for make in (ctx.Lock, ctx.Queue, lambda: ctx.Array('b', 10)):
        with refused(errno.{number}, *words):
            make()
assert not phalanx.active_children()
""")


def test_without_clone3_all_goes_on(short):
    short(f"""\
forbid("clone3")
{NAMELESS}
""")


def test_where_clone3_is_forbidden_and_not_missing_the_error_says_so(short):
    # The C library does without it only where it is missing.
    short("""\
forbid("clone3", errno.EPERM)
with refused(None, "clone3(2)", "seccomp", kind=(OSError, RuntimeError)):
    with ctx.Pool(2) as pool:
        assert pool.map(abs, [-1]) == [1]
    raise OSError("the C library does not use clone3(2), which needs seccomp to be seen")
assert not phalanx.active_children()
""")


# -- clocks


def test_a_clock_that_jumps_moves_no_timeout(short):
    short("""\
pool = warm_up()
jumps = iter(range(0, 10**12, 10**6))
time.time = lambda: next(jumps)
time.time_ns = lambda: next(jumps) * 10**9
begin = time.monotonic()
with refused(None, kind=phalanx.TimeoutError):
    pool.apply_async(time.sleep, (60,)).get(0.2)
with refused(None, kind=phalanx.TaskTimeout):
    pool.apply(time.sleep, (60,), timeout=0.2)
queue = ctx.Queue()
with refused(None, kind=__import__("queue").Empty):
    queue.get(timeout=0.2)
lock, event, condition = ctx.Lock(), ctx.Event(), ctx.Condition()
lock.acquire()
assert not lock.acquire(timeout=0.2)
assert not event.wait(0.2)
with condition:
    assert not condition.wait(0.2)
    assert not condition.wait_for(lambda: False, 0.2)
with refused(None, kind=threading.BrokenBarrierError):
    ctx.Barrier(2).wait(0.2)
receiver, sender = ctx.Pipe()
assert not receiver.poll(0.2)
process = ctx.Process(target=time.sleep, args=(60,))
process.start()
process.join(0.2)
assert process.exitcode is None
process.kill()
process.join()
took = time.monotonic() - begin
assert 10 * 0.2 <= took < 20, took
pool.terminate()
""")


def test_no_source_of_ours_asks_for_the_time_of_day():
    asks = re.compile(r"\bSystemTime\b|CLOCK_REALTIME|\btime\.time(_ns)?\(|datetime\.now")
    sources = [*(ROOT / "crates").glob("*/src/**/*.rs"), *(ROOT / "python").glob("**/*.py")]
    assert len(sources) > 100
    assert [str(each) for each in sources if asks.search(each.read_text())] == []


# -- sizes

SIZES = {
    "Pool(0)": (ValueError, "at least 1"),
    "Pool(-1)": (ValueError, "at least 1"),
    "Pool(65537)": (ValueError, "65537 workers are too many: a pool has at most 65536"),
    "Pool(2**40)": (ValueError, "1099511627776 workers are too many"),
    "Pool(2**64)": (ValueError, "18446744073709551616 workers are too many"),
    "Pool(1, maxtasksperchild=0)": (ValueError, "maxtasksperchild must be a positive int"),
    "Pool(1, timeout=0)": (ValueError, "timeout must be .* not 0"),
    "Pool(1, timeout=-1)": (ValueError, "timeout must be .* not -1"),
    "Pool(1, retries=-1)": (ValueError, "retries must be .* not -1"),
    "Pool(1, retries=2**40)": (ValueError, "retries must be .* not 1099511627776"),
    "Executor(0)": (ValueError, "max_workers must be greater than 0"),
    "Executor(2**40).submit(abs, 1)": (ValueError, "1099511627776 workers"),
    "Semaphore(-1)": (ValueError, "not -1"),
    "Semaphore(2**31)": (ValueError, "not 2147483648"),
    "BoundedSemaphore(-1)": (ValueError, "not -1"),
    "Barrier(0)": (ValueError, "parties must be >= 1"),
    "Barrier(-1)": (ValueError, "parties must be >= 1"),
    "Queue(2**64)": (OverflowError, "too big"),
    "RawArray('b', -1)": (ValueError, "not -1"),
    "Array('b', -1)": (ValueError, "not -1"),
    "RawArray('b', 2**64)": (OverflowError, "index-sized"),
    "SharedMemory(create=True, size=0)": (ValueError, "'size' must be a positive number"),
    "SharedMemory(create=True, size=-1)": (ValueError, "'size' must be a positive integer"),
    "SharedMemory(create=True, size=2**63)": (OverflowError, "too large"),
    "Pipe()[0].recv_bytes(-1)": (ValueError, "negative maxlength"),
}


@pytest.mark.parametrize("call", SIZES)
def test_a_size_that_makes_no_sense_is_an_error_that_names_it(call):
    kind, words = SIZES[call]
    with pytest.raises(kind, match=words):
        eval(call, {**vars(phalanx), "SharedMemory": SharedMemory, "Executor": Executor})


@pytest.mark.parametrize("size", ["0", "-1", "2**40"])
def test_a_queue_of_that_size_takes_what_it_can(size):
    # 0 and less is no bound, as in CPython; nor is more than there is memory for.
    queue = phalanx.Queue(eval(size))
    for number in range(100):
        queue.put_nowait(number)
    assert [queue.get() for _ in range(100)] == list(range(100))


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("name", ["map", "imap", "imap_unordered", "map_async"])
def test_a_chunk_of_nothing_is_an_error_that_names_it(pool, name, size):
    with pytest.raises(ValueError, match=rf"(?i)chunksize must be .* not {size}"):
        getattr(pool, name)(abs, [1], size)


def test_chunks_and_lives_that_nobody_reaches_are_no_limit(ctx):
    with ctx.Pool(1, maxtasksperchild=2**64) as pool:
        assert pool.map(abs, [-1, -2], 2**40) == [1, 2]
        assert list(pool.imap(abs, [-1, -2], 2**40, buffersize=2**40)) == [1, 2]
        assert pool.apply_async(abs, (-1,)).get(2**40) == 1
