"""The challenge by which both sides of a connection show that they have its key.

The wire is CPython's (3.12, ``Lib/multiprocessing/connection.py``)::

    asks      #CHALLENGE# {sha256} and 40 random bytes
    answers   {sha256} and the HMAC of everything behind #CHALLENGE#
    asks      #WELCOME# or #FAILURE#

CPython before 3.12 knows HMAC-MD5 only. It asks with 20 bytes without a name, and answers whatever
it is asked with 16 bytes without one. So that nobody who is on the way can have both sides fall
back to that, it is accepted only where ``PHALANX_ALLOW_MD5`` is set in the environment; and, unless
that is 0, by CPython 3.11, whose own ``multiprocessing`` has nothing else.

What the other side sends is at most 256 bytes, and is compared in constant time.
"""

from __future__ import annotations

import os
import sys
from multiprocessing import AuthenticationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["answer_challenge", "deliver_challenge"]

_CHALLENGE, _WELCOME, _FAILURE = b"#CHALLENGE#", b"#WELCOME#", b"#FAILURE#"
_RANDOM = 40  # bytes; more than those of a challenge without a name
_MOST = 256  # bytes of a message
_NAMELESS = {"challenge": 20, "answer": 16}  # bytes of those that mean MD5
_DIGESTS = frozenset({b"sha256", b"sha384", b"sha3_256", b"sha3_384"})


def deliver_challenge(connection: Any, authkey: bytes, digest_name: str = "sha256") -> None:
    """Have the other side of a connection show that it has the key.

    Raises:
        AuthenticationError: it has not, or answers with a digest that is not accepted.
        ValueError: the key is not bytes.
        EOFError: it has gone.
    """
    _check(authkey)
    message = b"{%s}%s" % (digest_name.encode("ascii"), os.urandom(_RANDOM))
    connection.send_bytes(_CHALLENGE + message)
    answer = connection.recv_bytes(_MOST)
    try:
        digest, mac = _named(answer, "answer")
        import hmac

        if not hmac.compare_digest(hmac.digest(authkey, message, digest), mac):
            raise AuthenticationError("digest received was wrong")
    except AuthenticationError:
        connection.send_bytes(_FAILURE)
        raise
    connection.send_bytes(_WELCOME)


def answer_challenge(connection: Any, authkey: bytes) -> None:
    """Show the other side of a connection that we have the key.

    Raises:
        AuthenticationError: it has another one, wants a digest that is not accepted, or speaks
            another language.
        ValueError: the key is not bytes.
        EOFError: it has gone.
    """
    _check(authkey)
    message = connection.recv_bytes(_MOST)
    if not message.startswith(_CHALLENGE):
        raise AuthenticationError(f"Protocol error, expected challenge: {message=}")
    message = message[len(_CHALLENGE) :]
    if len(message) < _NAMELESS["challenge"]:
        raise AuthenticationError(f"challenge too short: {len(message)} bytes")
    digest, _ = _named(message, "challenge")
    import hmac

    mac = hmac.digest(authkey, message, digest)
    nameless = len(message) == _NAMELESS["challenge"]
    connection.send_bytes(mac if nameless else b"{%s}%s" % (digest.encode("ascii"), mac))
    if connection.recv_bytes(_MOST) != _WELCOME:
        raise AuthenticationError("digest sent was rejected")


def _check(authkey: bytes) -> None:
    if not isinstance(authkey, bytes):
        raise ValueError(f"Authkey must be bytes, not {type(authkey)!s}")


def _named(message: bytes, what: str) -> tuple[str, bytes]:
    """The digest that a message names, and what comes after its name."""
    if len(message) == _NAMELESS[what]:
        name, rest = b"md5", message
    else:
        name, found, rest = message.removeprefix(b"{").partition(b"}")
        if not (found and message.startswith(b"{")):
            raise AuthenticationError(f"{what} of unsupported length, or without a digest's name")
    if name in _DIGESTS or (name == b"md5" and _allows_md5()):
        return name.decode("ascii"), rest
    if name == b"md5":
        raise AuthenticationError(
            f"the {what} is HMAC-MD5, as of CPython before 3.12, which is not accepted: set "
            "PHALANX_ALLOW_MD5=1 in the environment to accept it"
        )
    raise AuthenticationError(f"the digest that the {what} names is not supported")


def _allows_md5() -> bool:
    default = "1" if sys.version_info < (3, 12) else "0"
    return os.environ.get("PHALANX_ALLOW_MD5", default) not in {"", "0"}
