"""Run tests of one class, and append what happens to a file, a JSON object a line.

Runs as ``python -m phxsuite.worker EVENTS MODULE CLASS TEST...`` in a session of its own, so that
the runner can kill it with all it started when a test hangs. An event is written as it happens:
what a crash leaves behind is true as far as it goes.
"""

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
import unittest

RANK = ("pass", "skip", "fail", "error")  # the worst of a test and its subtests counts


class Reporter(unittest.TestResult):
    """Writes the start and the end of each test to the file ``path``."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def emit(self, **event):
        # Opened each time: tests close, count and compare descriptors.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o600)
        try:
            os.write(fd, (json.dumps(event) + "\n").encode())
        finally:
            os.close(fd)

    def startTest(self, test):
        super().startTest(test)
        self.state, self.text, self.started = "pass", "", time.monotonic()
        self.emit(event="start", test=test._testMethodName)

    def stopTest(self, test):
        super().stopTest(test)
        seconds = round(time.monotonic() - self.started, 3)
        name = test._testMethodName
        self.emit(event="end", test=name, state=self.state, text=self.text[-6000:], time=seconds)

    def note(self, test, state, text):
        """Keep ``state`` if it is worse than what is known; a fixture has none to keep it in."""
        if not isinstance(test, unittest.TestCase):
            self.emit(event="fixture", what=str(test), state=state, text=text[-6000:])
            return
        if RANK.index(state) >= RANK.index(self.state):
            self.state = state
        self.text += text

    def addError(self, test, err):
        self.note(test, "error", self._exc_info_to_string(err, test))

    def addFailure(self, test, err):
        self.note(test, "fail", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):
        self.note(test, "skip", str(reason))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            state = "fail" if issubclass(err[0], test.failureException) else "error"
            self.note(test, state, f"{subtest}\n{self._exc_info_to_string(err, test)}")

    def addUnexpectedSuccess(self, test):
        self.note(test, "fail", "unexpected success")


def main(path, module, cls, *names):
    """Run ``names`` of ``cls``, with the fixtures of class and module around them."""
    # A shell's background jobs have these ignored, and pass that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    faulthandler.register(signal.SIGQUIT, all_threads=True)
    reporter = Reporter(path)
    try:
        case = getattr(importlib.import_module(module), cls)
    except BaseException:
        text = traceback.format_exc()[-6000:]
        reporter.emit(event="fixture", what="import", state="error", text=text)
        return
    unittest.TestSuite([unittest.TestSuite(case(name) for name in names)]).run(reporter)
    reporter.emit(event="done")


if __name__ == "__main__":
    main(*sys.argv[1:])
