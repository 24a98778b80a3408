"""Numbers, texts and small tuples travel without the pickler, and nobody can tell.

What is written is a pickle, and what is read is what `pickle` would have made of it: for values of
any kind, with the same types, the same identities within a message, and the same errors.
"""

from __future__ import annotations

import enum
import math
import pickle
import random
from collections.abc import Callable

import phalanx
import pytest

EDGES = [0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 2**2100]
TEXTS = ["", "a", "ab", "é", "日本", "\0", *("x" * n for n in (255, 256)), "é" * 127, "é" * 128]


class Number(int):
    pass


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


def plain(rng: random.Random, depth: int = 0) -> object:
    kind = rng.randrange(8 if depth < 4 else 6)
    if kind < 2:
        edge, any_size = rng.choice(EDGES), rng.getrandbits(rng.randrange(1, 70))
        return rng.choice((edge, any_size)) * rng.choice((1, -1)) + rng.randrange(-1, 2)
    if kind < 6:
        floats = [0.0, -0.0, math.inf, -math.inf, 5e-324, rng.uniform(-1e9, 1e9)]
        others = [Number(7), Color.RED, Text("t"), 1j, frozenset([1]), {2}, b"bytes", {"k": 1}]
        small = [None, True, False, (), [], b"", rng.choice(TEXTS), rng.choice(TEXTS)]
        return rng.choice((floats, small, small, others)[kind - 2])
    some = [plain(rng, depth + 1) for _ in range(rng.randrange(6))]
    if kind == 6:
        return tuple(some)
    return some + rng.choices(some, k=rng.randrange(3)) if some else some


def there(value: object) -> object:
    queue = phalanx.SimpleQueue()
    queue.put(value)
    return queue.get()


def alike(a: object, b: object) -> bool:
    """The same types and values, and the same objects twice: their pickles tell."""
    return pickle.dumps(a) == pickle.dumps(b) and repr(a) == repr(b)


def test_any_value_arrives_as_pickle_would_have_made_it() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    queue = phalanx.SimpleQueue()
    for _ in range(20_000):
        value = plain(rng)
        queue.put(value)
        expected = pickle.loads(pickle.dumps(value))
        assert alike(queue.get(), expected), (seed, value)


@pytest.mark.parametrize("number", EDGES)
def test_numbers_of_any_size_arrive(number: int) -> None:
    for value in (number, -number, number - 1, -number - 1):
        assert there(value) == value
        assert there((value, [value])) == (value, [value])


def test_a_number_that_is_none_keeps_its_bits() -> None:
    arrived = there((math.nan, -math.nan))
    assert [math.copysign(1, it) for it in arrived] == [1.0, -1.0]
    assert all(math.isnan(it) for it in arrived)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_arrive(text: str) -> None:
    assert there(text) == text
    assert there((text, 1)) == (text, 1)


def test_a_lone_surrogate_arrives() -> None:
    assert there("\ud800") == "\ud800"


@pytest.mark.parametrize("value", [Number(3), Color.RED, Text("t"), True], ids=repr)
def test_a_subclass_stays_one(value: object) -> None:
    assert type(there(value)) is type(value)
    (inner,) = there((value,))
    assert type(inner) is type(value)


def test_what_is_one_object_stays_one() -> None:
    part, text = [1], "text" * 3
    a, b, c, d = there((part, part, text, text))
    assert a is b
    assert c is d
    loop: list[object] = []
    loop.append(loop)
    around = there(loop)
    assert around[0] is around


def test_lists_are_new_ones_and_empty_ones_are_not_shared() -> None:
    first, second = there(([], []))
    assert first is not second
    first.append(1)
    assert second == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_all_protocols_are_read(protocol: int) -> None:
    rng = random.Random(protocol)
    ours, theirs = phalanx.Pipe()
    for _ in range(500):
        value = plain(rng)
        theirs.send_bytes(pickle.dumps(value, protocol))
        assert alike(ours.recv(), pickle.loads(pickle.dumps(value, protocol))), value


def what_becomes_of(load: Callable[..., object], *args: object) -> object:
    try:
        return load(*args)
    except Exception as error:
        return type(error)


def test_nonsense_is_what_it_is_for_pickle() -> None:
    rng = random.Random(3)
    ours, theirs = phalanx.Pipe()
    values = [7, (1, 2.5, "t"), [1, [2, (3,)]], ("a", None, True)]
    plains = [pickle.dumps(value) for value in values]
    opcodes = b"\x80\x05\x95\x94.N\x88\x89KMJ\x8aG\x8c()\x85\x86\x87t]ae0"
    for _ in range(20_000):
        data = bytearray(rng.choice(plains))
        match rng.randrange(3):
            case 0:
                del data[rng.randrange(len(data)) :]
            case 1:
                data[rng.randrange(len(data))] = rng.choice(opcodes)
            case _:
                data.insert(rng.randrange(len(data)), rng.choice(opcodes))
        theirs.send_bytes(bytes(data))
        got, expected = what_becomes_of(ours.recv), what_becomes_of(pickle.loads, data)
        # A frame's length is a hint, which is not read where everything is there anyway.
        if not (expected is pickle.UnpicklingError and data[2:3] == b"\x95"):
            assert repr(got) == repr(expected), bytes(data)


def double(x: float | str) -> object:
    return x, (x * 2, [x])


@pytest.mark.parametrize("value", [3, 2**70, 1.5, "text", True], ids=repr)
def test_tasks_take_and_return_them(value: float | str, method: str) -> None:
    with phalanx.get_context(method).Pool(1) as pool:
        for result in (pool.apply(double, (value,)), pool.map(double, [value])[0]):
            assert alike(result, double(value))
