"""A pool that was not told has as many workers as can run at a time; `cpu_count` is CPython's."""

import os
import subprocess
import sys
from pathlib import Path

import phalanx
import pytest
from phalanx import _phalanx

COUNT = """
import os, phalanx
pool = phalanx.get_context("fork").Pool()
print(len(pool._pool), phalanx.cpu_count(), os.cpu_count())
pool.terminate()
pool.join()
"""
CPUS = sorted(os.sched_getaffinity(0))
GROUPS = Path("/sys/fs/cgroup/cpu")


def counted(options=(), env=None, before=None):
    """The workers, phalanx's ``cpu_count`` and CPython's, of a Python of its own."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHON_CPU_COUNT"} | (env or {})
    run = subprocess.run(
        [sys.executable, *options, "-c", COUNT],
        env=environ,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert run.returncode == 0, run.stderr
    return [int(word) for word in run.stdout.split()]


def test_the_affinity_mask_counts():
    workers, *_ = counted(before=lambda: os.sched_setaffinity(0, CPUS[:1]))
    assert workers == 1


def test_x_cpu_count_and_the_environment_overrule_what_the_system_says():
    assert counted(env={"PYTHON_CPU_COUNT": "3"})[0] == 3
    assert counted(options=["-X", "cpu_count=4"])[0] == 4
    assert counted(options=["-X", "cpu_count=4"], env={"PYTHON_CPU_COUNT": "3"})[0] == 4


def test_default_and_an_environment_that_is_to_be_ignored_overrule_nothing():
    usual = counted()[0]
    assert counted(env={"PYTHON_CPU_COUNT": "default"})[0] == usual
    assert counted(options=["-E"], env={"PYTHON_CPU_COUNT": "7"})[0] == usual


def test_cpu_count_is_that_of_the_running_python():
    for options in ([], ["-X", "cpu_count=5"]):
        _, ours, theirs = counted(options=options)
        assert ours == theirs
    assert phalanx.cpu_count() == os.cpu_count()


def test_the_default_is_the_engines():
    assert 1 <= _phalanx.default_processes() <= len(CPUS)


def test_a_quota_of_the_control_group_counts():
    group = GROUPS / f"phalanx-test-{os.getpid()}"
    if len(CPUS) < 2:
        pytest.skip("one CPU: a quota below it makes no difference")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here (version 1, as root): {error}")
    try:
        (group / "cpu.cfs_quota_us").write_text("80000")
        workers, *_ = counted(before=lambda: (group / "tasks").write_text("0"))
        assert workers == 1
    finally:
        group.rmdir()
