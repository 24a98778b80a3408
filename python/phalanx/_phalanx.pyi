"""The engine, as Python sees it."""

from collections.abc import Sequence
from typing import final

@final
class Child:
    """A child process, watched by its pidfd."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def fileno(self) -> int:
        """Its pidfd: readable from its end on."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or ``None`` while it runs."""

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or ``None`` if it still runs after ``timeout`` seconds."""

    def send_signal(self, signal: int) -> None:
        """Send it a signal; nothing happens if it has ended."""

    def close(self) -> None:
        """Let go of its pidfd."""

def spawn(
    path: bytes,
    args: Sequence[bytes],
    env: Sequence[bytes] | None = None,
    fds: Sequence[int] = ...,
) -> Child:
    """Run a program that keeps the descriptors ``fds`` at their numbers, and no others above 2."""

def child_of(pid: int) -> Child:
    """The child that the caller has just forked."""

def self_pidfd() -> int:
    """A descriptor of this process, for its children to see its end by; opened once, and kept."""

@final
class Template:
    """A warm process that forks when asked."""

    @staticmethod
    def start(
        path: bytes, args: Sequence[bytes], env: Sequence[bytes] | None = None
    ) -> Template:
        """Run the program that is to be a `TemplateServer` of its last argument's descriptor."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def is_alive(self) -> bool:
        """Can it be asked: does it run, and is this not a forked child of its owner?"""

    def launch(self, payload: bytes, fds: Sequence[int], hint: bytes | None = None) -> Child:
        """Have a child forked that is given ``payload`` and copies of ``fds``.

        ``hint``, of at most 4000 bytes, is for the template itself.
        """

    def stop(self, timeout: float) -> None:
        """End it, and wait for its end at most ``timeout`` seconds."""

@final
class TemplateServer:
    """The template's own side."""

    def __new__(cls, fd: int) -> TemplateServer: ...
    def next(self) -> Request | None:
        """Wait for a request, and report ends meanwhile; ``None`` when the owner is gone."""

    def launched(self, pid: int) -> None:
        """The last request has become the process ``pid``."""

    def refused(self, errno: int) -> None:
        """The last request could not be forked for."""

    def close(self) -> None:
        """Let go of everything, in a child."""

@final
class Request:
    """A child that the template was asked for."""

    @property
    def hint(self) -> bytes:
        """What the owner wrote for the template itself."""

    def take(self) -> tuple[int, list[int]]:
        """The payload's descriptor and the others, which are the caller's from now on."""

    def close(self) -> None:
        """Close the descriptors that were not taken."""
