"""Large data that is sent more than once, or written where it is sent from."""

import gc
import os
import pickle
import signal
import sys
from functools import partial

import numpy as np
import phalanx
import pytest
from tasks import identity, pid_of_worker, wait_until
from test_large import MIB, die_holding, is_numbers, kept, numbers, pages

SHARED = 8 * MIB
#: What a copy of it for each of some tasks would come to is far above.
ONE_COPY = SHARED + 2 * MIB


def first_of(data: np.ndarray) -> int:
    assert is_numbers(data, int(data[0]))
    return int(data[0])


def first_and(data: np.ndarray, number: int) -> tuple[int, int]:
    return first_of(data), number


def spoil(data: np.ndarray) -> int:
    """Write to the argument, and say what its first number was."""
    first = first_of(data)
    data[:] = -1
    return first


def look_inside(thing: dict[str, list[np.ndarray]], number: int) -> tuple[int, int]:
    return sum(map(first_of, thing["arrays"])), number


def count_inside(thing: dict[str, list[dict[str, list[np.ndarray]]]]) -> int:
    return len(thing["deep"][0]["arrays"])


def check_in_process(data: "np.ndarray | phalanx.Shared[np.ndarray]") -> None:
    # With fork, arguments are not pickled.
    sys.exit(first_of(data.get() if isinstance(data, phalanx.Shared) else data))


def lend_back(number: int, nbytes: int = MIB) -> np.ndarray:
    result = phalanx.loan(nbytes // 8, np.int64)
    result[:] = numbers(number, nbytes)
    return result


def lend_back_and_keep(number: int) -> np.ndarray:
    kept.append(lend_back(number))
    return kept[-1]


def spoil_what_was_kept(_: object) -> None:
    for thing in kept:
        thing[:] = -1


def where_it_lies(data: np.ndarray) -> list[str]:
    """The kind of memory that an array is in, by the process's map of it."""
    address = data.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= address < end:
                return line.split()[1:]
    raise AssertionError("not mapped")


def lent_where_it_lies(_: object) -> list[str]:
    return where_it_lies(phalanx.loan(MIB, np.uint8))


def copies_of(pool: phalanx.pool.Pool) -> int:
    pool.apply(pid_of_worker)  # what ended has let go
    return pages()


# -- the same array in many tasks of one call


@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_what_comes_in_every_task_of_a_map_is_copied_once(
    pool: phalanx.pool.Pool, chunksize: int | None
) -> None:
    data, before = numbers(3, SHARED), pages()
    rows = [(data, number) for number in range(60)]
    assert pool.starmap(first_and, rows, chunksize) == [(3, number) for number in range(60)]
    assert copies_of(pool) - before <= ONE_COPY


def test_what_comes_in_every_task_is_each_tasks_own(pool: phalanx.pool.Pool) -> None:
    data = numbers(5, SHARED)
    assert pool.map(spoil, [data] * 30, 1) == [5] * 30
    assert is_numbers(data, 5)
    assert pool.map_async(spoil, [data] * 30, 1).get() == [5] * 30


def test_another_call_sends_what_the_array_has_become(pool: phalanx.pool.Pool) -> None:
    data = numbers(0)
    for first in range(20):
        data[:] = numbers(first)
        assert pool.map(first_of, [data] * 4, 1) == [first] * 4
        later = [pool.map_async(first_of, [data] * 4, 1)]
        data[:] = numbers(first + 100)
        later.append(pool.map_async(first_of, [data] * 4, 1))
        data[:] = -1
        assert [each.get() for each in later] == [[first] * 4, [first + 100] * 4]


def test_arrays_that_share_their_beginning_are_not_taken_for_one(pool: phalanx.pool.Pool) -> None:
    data = numbers(0, 2 * MIB)
    parts = [data[:n] for n in range(len(data), len(data) - 30, -1)]
    assert pool.map(len, parts * 2, 1) == [len(part) for part in parts] * 2


def test_more_different_arrays_than_are_known_arrive_as_they_are(pool: phalanx.pool.Pool) -> None:
    arrays = [numbers(first, 128 << 10) for first in range(30)]
    assert pool.map(first_of, arrays * 4, 1) == list(range(30)) * 4


def test_map_does_not_send_all_that_is_large_at_once(pool: phalanx.pool.Pool) -> None:
    before, most = pages(), 0

    class Watched(np.ndarray):
        def __reduce_ex__(self, protocol: int) -> object:
            nonlocal most
            most = max(most, pages())
            return np.array(self).__reduce_ex__(protocol)

    arrays = [np.zeros(16 * MIB, np.uint8).view(Watched) for _ in range(2)]
    assert pool.map(len, arrays * 40, 1) == [16 * MIB] * 80
    assert most - before < 600 * MIB  # of 1280


# -- share


def test_what_is_shared_is_copied_once_for_all_tasks_of_all_calls(pool: phalanx.pool.Pool) -> None:
    before = pages()
    with phalanx.share({"arrays": [numbers(3, SHARED), numbers(4)]}) as shared:
        for _ in range(5):
            rows = [(shared, number) for number in range(20)]
            assert pool.starmap(look_inside, rows, 1) == [(7, number) for number in range(20)]
            assert pool.apply(look_inside, (shared, 1)) == (7, 1)
            assert list(pool.imap(count_inside, [{"deep": [shared]}] * 20)) == [2] * 20
        assert SHARED <= copies_of(pool) - before < 2 * SHARED
    assert "released" in repr(shared)


def test_what_is_shared_is_a_snapshot_and_each_tasks_own(pool: phalanx.pool.Pool) -> None:
    data = numbers(5)
    shared = phalanx.share(data)
    data[:] = -1
    assert pool.map(spoil, [shared] * 30, 1) == [5] * 30
    mine = shared.get()
    mine[:] = -1
    assert is_numbers(shared.get(), 5)
    assert pool.apply(first_of, (shared,)) == 5


@pytest.mark.parametrize("thing", [None, 17, "text", {"a": [1, 2, (3,)]}, bytes(MIB), b"", [[]]])
def test_whatever_can_be_pickled_can_be_shared(pool: phalanx.pool.Pool, thing: object) -> None:
    shared = phalanx.share(thing)
    assert shared.get() == thing
    assert pool.map(identity, [shared, [shared]]) == [thing, [thing]]


def test_what_cannot_be_pickled_is_refused_at_once() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        phalanx.share(lambda: None)


def test_what_was_released_is_refused_and_its_memory_goes_back(pool: phalanx.pool.Pool) -> None:
    before = pages()
    shared = phalanx.share(numbers(1, SHARED))
    running = pool.map_async(first_of, [shared] * 4, 1)
    shared.release()
    shared.release()
    assert running.get() == [1] * 4  # what was sent is not taken away
    for use in (shared.get, lambda: pool.apply(first_of, (shared,))):
        with pytest.raises(ValueError, match="released"):
            use()
    wait_until(lambda: copies_of(pool) - before < SHARED, "the memory to go back")
    assert pool.apply(first_of, (phalanx.share(numbers(2)),)) == 2


def test_dropping_it_releases_it(pool: phalanx.pool.Pool) -> None:
    before = pages()
    assert pool.apply(first_of, (phalanx.share(numbers(1, SHARED)),)) == 1
    gc.collect()
    wait_until(lambda: copies_of(pool) - before < SHARED, "the memory to go back")


def test_it_outlives_pools_and_workers(ctx: phalanx.context.BaseContext) -> None:
    shared = phalanx.share(numbers(9))
    for _ in range(2):
        with ctx.Pool(2) as pool, ctx.Pool(1) as other:
            assert pool.map(first_of, [shared] * 4, 1) == [9] * 4
            assert other.apply(first_of, (shared,)) == 9
            with pytest.raises(phalanx.WorkerDied):
                pool.apply(kill_holding, (shared,))
            assert pool.map(first_of, [shared] * 4, 1) == [9] * 4


def kill_holding(data: np.ndarray) -> None:
    die_holding(data - data[0])


def test_it_goes_through_queues_and_to_processes(ctx: phalanx.context.BaseContext) -> None:
    shared = phalanx.share(numbers(9))
    process = ctx.Process(target=check_in_process, args=(shared,))
    process.start()
    process.join()
    assert process.exitcode == 9
    queue = ctx.SimpleQueue()
    queue.put(shared)
    assert is_numbers(queue.get(), 9)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert is_numbers(pickle.loads(pickle.dumps(shared, protocol)), 9)


def test_it_is_sent_with_a_function_too(pool: phalanx.pool.Pool) -> None:
    shared = phalanx.share(numbers(9))
    assert pool.map(partial(first_and, shared), range(5)) == [(9, number) for number in range(5)]


# -- loan


def test_what_is_lent_is_sent_where_it_is(pool: phalanx.pool.Pool) -> None:
    with pool.loan((4, SHARED // 32), np.int64) as data:
        assert data.shape == (4, SHARED // 32)
        assert "memfd" in str(where_it_lies(data))
        before = pages()
        data.reshape(-1)[:] = numbers(6, SHARED)
        assert pool.map(first_of, [data.reshape(-1)] * 20, 1) == [6] * 20
        assert pool.apply(spoil, (data.reshape(-1),)) == 6
        assert pages() - before < MIB
        assert is_numbers(data.reshape(-1), 6)
        assert pool.apply(first_of, (data[1],)) == 6 + SHARED // 32


def test_a_loan_is_written_again_when_its_tasks_are_done(pool: phalanx.pool.Pool) -> None:
    with pool.loan(MIB // 8, int) as data:
        for first in range(20):
            data[:] = numbers(first)
            assert pool.map(first_of, [data] * 3, 1) == [first] * 3


def test_the_memory_of_a_loan_stays_while_somebody_has_it(ctx: phalanx.context.BaseContext) -> None:
    with ctx.Pool(1) as pool, pool.loan(MIB // 8, int) as data:
        data[:] = numbers(3)
        pool.terminate()
        pool.join()
        assert is_numbers(data, 3)
    assert is_numbers(data[5:], 8)


def test_memory_of_loans_is_used_again(pool: phalanx.pool.Pool) -> None:
    held = []
    for _ in range(20):
        with pool.loan(MIB) as data:
            data[:] = 1.0
            del data
        held.append(pages())
    assert max(held) - held[0] < MIB


def test_results_are_lent_back(pool: phalanx.pool.Pool) -> None:
    assert "memfd" in str(pool.apply(lent_where_it_lies, (None,)))
    results = pool.map(lend_back, range(12), 1)
    assert all(is_numbers(result, number) for number, result in enumerate(results))
    results[3][:] = -1
    assert is_numbers(results[4], 4)
    assert "memfd" not in str(where_it_lies(phalanx.loan(MIB)))


def test_what_a_task_keeps_of_its_loan_changes_no_result(ctx: phalanx.context.BaseContext) -> None:
    with ctx.Pool(1) as pool:
        results = pool.map(lend_back_and_keep, range(4), 1)
        pool.apply(spoil_what_was_kept, (None,))
        assert all(is_numbers(result, number) for number, result in enumerate(results))


def test_results_outlive_their_worker(ctx: phalanx.context.BaseContext) -> None:
    with ctx.Pool(1) as pool:
        result = pool.apply(lend_back, (4,))
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        assert pool.apply(lend_back, (5,))[0] == 5
        assert is_numbers(result, 4)


def test_small_or_empty_loans_are_ordinary_arrays(pool: phalanx.pool.Pool) -> None:
    for shape in (0, 3, (2, 0), ()):
        with pool.loan(shape, np.uint8) as data:
            assert data.shape == np.empty(shape).shape
            data[...] = 7
            assert (pool.apply(identity, (data,)) == data).all()


def test_a_loan_that_makes_no_sense_is_an_error(ctx: phalanx.context.BaseContext) -> None:
    with ctx.Pool(1) as pool:
        for shape, dtype, error in [
            (-1, float, ValueError),
            ((1 << 20, -3), float, ValueError),
            (1 << 50, float, MemoryError),
            (10, object, TypeError),
            (10, "no such type", TypeError),
        ]:
            with pytest.raises(error), pool.loan(shape, dtype):
                pass
        assert pool.apply(first_of, (numbers(2),)) == 2
    with pytest.raises(ValueError, match="not running"), pool.loan(10):
        pass
