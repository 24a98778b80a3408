"""Large arguments and results: seen without a copy, and yet everybody's own."""

import array
import gc
import os
import pickle
import resource
import signal
import sys
import threading
from multiprocessing.pool import MaybeEncodingError
from pathlib import Path

import numpy as np
import phalanx
import pytest
from tasks import identity, pid_of_worker, wait_until

KIB, MIB = 1 << 10, 1 << 20
#: Around the sizes from which pieces go their own way, and whole pages are seen.
SIZES = [64 * KIB - 1, 64 * KIB, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 3 * MIB + 5]

kept: list[object] = []


def numbers(first: int, nbytes: int = MIB) -> np.ndarray:
    return np.arange(first, first + nbytes // 8, dtype=np.int64)


def is_numbers(data: np.ndarray, first: int) -> bool:
    return bool((data == numbers(first, data.nbytes)).all())


def double(data: np.ndarray) -> int:
    """Write to the argument, and say what its first number was."""
    first = int(data[0])
    data *= 2
    return first


def keep_slice(data: np.ndarray) -> None:
    kept.append(data[100:200])


def fail_with(data: np.ndarray) -> None:
    try:
        raise ValueError("the traceback holds the frame, and that the argument")
    except ValueError as error:
        kept.append(error)


def kept_firsts(_: object) -> list[int]:
    """The first number of all that was kept, if what follows it is what it was."""
    firsts = []
    for thing in kept:
        if isinstance(thing, ValueError):
            thing = thing.__traceback__.tb_frame.f_locals["data"]  # noqa: PLW2901
        assert is_numbers(thing, int(thing[0]))
        firsts.append(int(thing[0]))
    return firsts


def keep_in_child(data: np.ndarray, go: str) -> int:
    """Fork a child that exits with 0 if the argument is whole when ``go`` exists."""
    first = int(data[0])
    pid = os.fork()
    if pid == 0:
        try:
            wait_until(lambda: os.path.exists(go), "the word to go")
            os._exit(0 if is_numbers(data, first) else 1)
        finally:
            os._exit(2)
    return pid


def exit_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def numbered(first: int, nbytes: int) -> np.ndarray:
    return numbers(first, nbytes)


def die_holding(data: np.ndarray) -> None:
    assert is_numbers(data, 0)
    os.kill(os.getpid(), signal.SIGKILL)


class Unpicklable:
    def __init__(self) -> None:
        self.data = numbers(0)

    def __reduce__(self) -> str:
        raise pickle.PicklingError("not this one")


def large_but_unpicklable(_: object) -> object:
    return [numbers(0), Unpicklable()]


def pages() -> int:
    """Bytes of memory files that this process holds open."""
    files = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:"):
                status = os.stat(f"/proc/self/fd/{fd}")
                files[status.st_ino] = status.st_blocks * 512
        except OSError:
            continue
    return sum(files.values())


@pytest.mark.parametrize("size", SIZES)
def test_what_is_large_comes_and_goes_whole(pool: phalanx.pool.Pool, size: int) -> None:
    pattern = bytes(range(251)) * (size // 251 + 1)
    data = pattern[:size]
    assert pool.apply(identity, (data,)) == data
    assert type(pool.apply(identity, (bytearray(data),))) is bytearray
    nested = {
        "a": [data, bytearray(data)],
        "b": (array.array("B", data), np.frombuffer(data, "u1")),
    }
    back = pool.apply(identity, (nested,))
    assert back["a"] == nested["a"]
    assert back["b"][0] == nested["b"][0]
    assert (back["b"][1] == nested["b"][1]).all()


def test_small_and_large_pieces_of_one_message_keep_their_order(pool: phalanx.pool.Pool) -> None:
    sizes = [8, 100 * KIB, 0, MIB, 64 * KIB, 8, 300 * KIB]
    arrays = [numbers(index, size) for index, size in enumerate(sizes)]
    for back in pool.map(identity, [arrays] * 3, 1):
        assert [len(one) for one in back] == [len(one) for one in arrays]
        assert all(is_numbers(one, index) for index, one in enumerate(back) if len(one))


def test_arrays_that_are_not_in_one_piece_or_in_fortran_order_arrive(
    pool: phalanx.pool.Pool,
) -> None:
    square = numbers(0, 2 * MIB).reshape(512, -1)
    for data in (square.T, square[:, ::3], np.asfortranarray(square), square[::-1]):
        assert (pool.apply(identity, (data,)) == data).all()


def test_one_array_twice_in_a_message_is_one_array(pool: phalanx.pool.Pool) -> None:
    data = numbers(0)
    first, second = pool.apply(identity, ([data, data],))
    assert first is second


def test_a_task_writes_to_its_argument_and_nobody_else_sees_it(pool: phalanx.pool.Pool) -> None:
    data = numbers(7)
    assert pool.map(double, [data] * 20, 1) == [7] * 20
    assert pool.map(double, [data] * 20, 5) == [7, 14, 28, 56, 112] * 4  # one message, one array
    assert is_numbers(data, 7)


def test_a_result_may_be_written_to(pool: phalanx.pool.Pool) -> None:
    one, other = pool.map(identity, [numbers(1)] * 2, 1)
    one += 5
    assert is_numbers(other, 1)
    assert is_numbers(one, 6)


def test_what_changed_between_two_calls_arrives_changed(pool: phalanx.pool.Pool) -> None:
    data = numbers(0)
    for first in range(5):
        data[:] = numbers(first)
        assert [is_numbers(back, first) for back in pool.map(identity, [data] * 4, 1)] == [True] * 4


def test_what_changes_after_a_call_has_returned_is_not_seen_by_its_task(
    ctx: phalanx.context.BaseContext,
) -> None:
    with ctx.Pool(1) as pool:
        data = numbers(0)
        results = []
        for first in range(10):
            data[:] = numbers(first)
            results.append(pool.apply_async(identity, (data,)))
        assert [is_numbers(one.get(), first) for first, one in enumerate(results)] == [True] * 10


def test_what_a_task_keeps_of_its_argument_stays_as_it_was(
    ctx: phalanx.context.BaseContext,
) -> None:
    with ctx.Pool(1) as pool:
        for first in range(0, 400, 2):
            pool.apply(keep_slice, (numbers(first, 300 * KIB),))
            pool.apply(fail_with, (numbers(first + 1, 300 * KIB),))
        kept_there = pool.apply(kept_firsts, (None,))
        assert kept_there[0::2] == [first + 100 for first in range(0, 400, 2)]
        assert kept_there[1::2] == list(range(1, 400, 2))


def test_what_a_forked_child_of_a_task_sees_stays_as_it_was(
    ctx: phalanx.context.BaseContext, tmp_path: Path
) -> None:
    with ctx.Pool(1) as pool:
        go = tmp_path / "go"
        pid = pool.apply(keep_in_child, (numbers(11, 8 * MIB), str(go)))
        for _ in range(10):
            pool.apply(double, (numbers(500, 8 * MIB),))
        go.touch()
        assert pool.apply(exit_of, (pid,)) == 0


def test_results_stay_as_they_were_however_many_are_kept(pool: phalanx.pool.Pool) -> None:
    count, size = 3000, 70 * KIB
    results = pool.starmap(numbered, [(first, size) for first in range(count)], 1)
    for _ in range(3):
        pool.starmap(numbered, [(-first, size) for first in range(100)], 1)
    assert all(is_numbers(result, first) for first, result in enumerate(results))


def results_of_a_pool_that_ended(ctx: phalanx.context.BaseContext) -> list[np.ndarray]:
    pool = ctx.Pool(1)
    results = [pool.apply(numbered, (first, 4 * MIB)) for first in range(3)]
    pid = pool.apply(pid_of_worker)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pool.apply(pid_of_worker) != pid, "another worker")
    results += [pool.apply(numbered, (first, 4 * MIB)) for first in range(3, 6)]
    assert all(is_numbers(result, first) for first, result in enumerate(results))
    pool.terminate()
    pool.join()
    return results


def test_results_outlive_their_worker_and_their_pool(ctx: phalanx.context.BaseContext) -> None:
    results = results_of_a_pool_that_ended(ctx)
    gc.collect()
    assert all(is_numbers(result, first) for first, result in enumerate(results))
    results[0][:] = 3
    assert is_numbers(results[1], 1)


def test_a_worker_that_dies_with_large_arguments_leaves_no_memory_behind(
    ctx: phalanx.context.BaseContext,
) -> None:
    with ctx.Pool(1) as pool:
        data = numbers(0, 8 * MIB)
        for _ in range(10):
            with pytest.raises(phalanx.WorkerDied):
                pool.apply(die_holding, (data,))
        assert pages() < 40 * MIB
        assert is_numbers(pool.apply(identity, (data,)), 0)


def test_memory_of_slots_goes_back_when_the_pool_is_idle(pool: phalanx.pool.Pool) -> None:
    before = pages()
    pool.map(identity, [numbers(0, 8 * MIB)] * 10, 1)
    assert pages() > before + 8 * MIB
    wait_until(lambda: pages() <= before + MIB, "the slots to go back")


def test_what_is_refused_on_the_way_back_leaves_the_pool_as_it_was(
    pool: phalanx.pool.Pool,
) -> None:
    for _ in range(3):
        with pytest.raises(MaybeEncodingError):
            pool.apply(large_but_unpicklable, (None,))
        with pytest.raises(pickle.PicklingError):
            pool.apply(identity, ([numbers(0), Unpicklable()],))
    assert is_numbers(pool.apply(identity, (numbers(3),)), 3)


def test_many_threads_send_and_get_large_arrays(pool: phalanx.pool.Pool) -> None:
    wrong: list[int] = []

    def call(first: int) -> None:
        for number in range(first, first + 10):
            back = pool.apply(identity, (numbers(number, 2 * MIB),))
            if not is_numbers(back, number):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(100 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_imap_passes_large_arrays_through_in_bounded_memory(pool: phalanx.pool.Pool) -> None:
    items = (numbers(first, 4 * MIB) for first in range(60))
    highest = 0
    for first, back in enumerate(pool.imap(identity, items)):
        assert is_numbers(back, first)
        highest = max(highest, pages())
    assert highest < 200 * MIB


def pass_through_with(method: str, limit: int) -> None:
    """Pass arrays through a pool where no file may be larger than ``limit``."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with phalanx.get_context(method).Pool(2) as pool:
        backs = pool.map(identity, [numbers(5, 4 * MIB)] * 6, 1)
        sys.exit(0 if all(is_numbers(back, 5) for back in backs) else 3)


def test_a_small_limit_of_file_sizes_costs_copies_only(ctx: phalanx.context.BaseContext) -> None:
    limited = ctx.Process(target=pass_through_with, args=(ctx.get_start_method(), 16 * MIB))
    limited.start()
    limited.join(40)
    assert limited.exitcode == 0
