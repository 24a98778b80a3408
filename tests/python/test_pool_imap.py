"""``imap`` reads its input lazily, and can be left at any moment."""

import gc
import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from tasks import fail_on_three, square, wait_until

BOTH = pytest.mark.parametrize("name", ["imap", "imap_unordered"])
MANY = 200_000


class Input:
    """0, 1, 2, ... without end; counts how many were read, and knows when it was given up."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            for x in itertools.count():
                self.read = x + 1
                yield x
        finally:
            self.closed.set()

    def settled(self) -> int:
        """How many were read once reading has stopped for a while."""
        seen, since = self.read, time.monotonic()

        def unchanged() -> bool:
            nonlocal seen, since
            if self.read != seen:
                seen, since = self.read, time.monotonic()
            return time.monotonic() - since > 0.2

        wait_until(unchanged, "reading to stop")
        return seen


@BOTH
def test_imap_reads_at_most_its_buffer_ahead(pool, name):
    numbers = Input()
    iterator = getattr(pool, name)(square, numbers, buffersize=10)
    for taken in range(1, 30):
        next(iterator)
        if taken in (1, 10, 29):
            # One more is in the hand of the thread that reads.
            assert taken <= numbers.settled() <= taken + 10 + 1


@BOTH
def test_imap_reads_an_infinite_input_a_bounded_way_ahead_by_default(pool, name):
    numbers = Input()
    iterator = getattr(pool, name)(square, numbers)
    next(iterator)
    assert numbers.settled() < 100_000


@BOTH
def test_imap_goes_through_an_infinite_input_in_constant_memory(pool, name):
    numbers = Input()
    iterator = getattr(pool, name)(square, numbers)
    furthest = 0
    for taken, _ in enumerate(itertools.islice(iterator, MANY), 1):
        furthest = max(furthest, numbers.read - taken)
    assert furthest < MANY / 2


@BOTH
def test_a_buffer_of_one_is_enough(pool, name):
    assert sorted(getattr(pool, name)(square, range(50), buffersize=1)) == [
        x * x for x in range(50)
    ]


@BOTH
def test_a_chunk_larger_than_the_buffer_still_goes(pool, name):
    assert sorted(getattr(pool, name)(square, range(50), 20, buffersize=5)) == [
        x * x for x in range(50)
    ]


@BOTH
@pytest.mark.parametrize("buffersize", [0, -1])
def test_a_buffer_holds_at_least_one(pool, name, buffersize):
    with pytest.raises(ValueError, match="buffersize"):
        getattr(pool, name)(square, range(3), buffersize=buffersize)


@BOTH
def test_close_and_join_return_when_an_endless_input_is_left_half_way(pool, name):
    iterator = getattr(pool, name)(square, Input())
    for _ in range(3):
        next(iterator)
    pool.close()
    pool.join()
    with pytest.raises(ValueError, match=r"(?i)pool"):
        list(itertools.islice(iterator, MANY))


@BOTH
def test_terminate_returns_when_an_endless_input_is_left_half_way(pool, name):
    iterator = getattr(pool, name)(square, Input())
    next(iterator)
    pool.terminate()
    pool.join()
    with pytest.raises(Exception, match=r"(?i)pool"):
        list(itertools.islice(iterator, MANY))


@BOTH
def test_join_feeds_an_input_of_known_length_to_its_end(pool, name):
    iterator = getattr(pool, name)(square, range(1000), buffersize=4)
    first = next(iterator)
    pool.close()
    pool.join()
    assert sorted([first, *iterator]) == [x * x for x in range(1000)]


@BOTH
def test_join_feeds_an_iterator_that_was_never_advanced_to_its_end(pool, name):
    iterator = getattr(pool, name)(square, (x for x in range(1000)), buffersize=4)
    pool.close()
    pool.join()
    assert sorted(iterator) == [x * x for x in range(1000)]


@BOTH
def test_an_iterator_that_is_dropped_stops_reading(pool, name):
    numbers = Input()
    iterator = getattr(pool, name)(square, iter(numbers), buffersize=5)
    next(iterator)
    del iterator
    gc.collect()
    wait_until(numbers.closed.is_set, "the input to be let go")
    assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    pool.close()
    pool.join()


@BOTH
def test_breaking_out_of_a_loop_leaves_the_pool_usable(pool, name):
    for _ in range(5):
        for value in getattr(pool, name)(square, Input()):
            if value > 100:
                break
    assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def bad_input(good):
    yield from range(good)
    raise LookupError("the input is broken")


@BOTH
@pytest.mark.parametrize("good", [0, 1, 10])
def test_an_input_that_raises_passes_its_exception_on(pool, name, good):
    iterator = getattr(pool, name)(square, bad_input(good))
    values = []
    with pytest.raises(LookupError, match="the input is broken"):
        values.extend(iterator)
    if name == "imap":
        assert values == [x * x for x in range(good)]
    values.extend(iterator)
    assert sorted(values) == [x * x for x in range(good)]
    assert pool.map(square, range(3)) == [0, 1, 4]


@pytest.mark.parametrize("name", ["map", "map_async", "starmap", "starmap_async"])
def test_an_input_of_map_that_raises_passes_its_exception_on(pool, name):
    with pytest.raises(LookupError, match="the input is broken"):
        getattr(pool, name)(square, bad_input(3))
    assert pool.map(square, range(3)) == [0, 1, 4]


@BOTH
def test_an_item_that_fails_does_not_end_the_others(pool, name):
    iterator = getattr(pool, name)(fail_on_three, range(6))
    values, failed = [], 0
    while True:
        try:
            values.append(next(iterator))
        except StopIteration:
            break
        except ValueError:
            failed += 1
    assert (sorted(values), failed) == ([0, 1, 2, 4, 5], 1)


def test_an_input_that_uses_the_pool_itself_does_not_deadlock(pool):
    inner = (pool.apply(square, (x,)) for x in range(5))
    assert list(pool.imap(square, inner)) == [x**4 for x in range(5)]


def test_one_iterator_can_be_another_ones_input(pool):
    assert list(pool.imap(square, pool.imap(square, range(50)))) == [x**4 for x in range(50)]


def test_several_iterators_take_turns(pool):
    iterators = [pool.imap(square, Input()) for _ in range(3)]
    rows = [[next(iterator) for iterator in iterators] for _ in range(20)]
    assert rows == [[x * x] * 3 for x in range(20)]
