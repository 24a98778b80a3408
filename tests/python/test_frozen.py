"""`freeze_support`: a program that is its own interpreter, as PyInstaller and others make them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import phalanx
import pytest

PACKAGE = str(Path(phalanx.__file__).parents[1])

# A frozen program has no `-c`: whatever it is started with are arguments. A script with a first
# line of its own is just that. It must not start itself without end if what is tested is broken.
PROGRAM = """\
    #!{python}
    import os, sys
    sys.frozen, sys.executable = True, os.path.abspath(sys.argv[0])
    first = "INSIDE" not in os.environ
    os.environ["INSIDE"] = "yes"
    import phalanx as multiprocessing

    if __name__ == "__main__":
        multiprocessing.freeze_support()
        if not first:
            os.write(2, ("taken for the first: " + repr(sys.argv)).encode())
            os._exit(9)
        context = multiprocessing.get_context({method!r})
        with context.Pool(1) as pool:
            print(pool.map(abs, [-1, -2]))
        queue = context.SimpleQueue()
        process = context.Process(target=queue.put, args=("sent",))
        process.start()
        print(queue.get())
        process.join()
        print(process.exitcode)
        from multiprocessing.shared_memory import SharedMemory
        memory = SharedMemory(create=True, size=1)
        memory.close()
        memory.unlink()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_frozen_programs_children_and_tracker_are_not_taken_for_the_program(tmp_path, method):
    program = tmp_path / "program"
    program.write_text(textwrap.dedent(PROGRAM).format(python=sys.executable, method=method))
    program.chmod(0o755)
    env = dict(os.environ, PYTHONPATH=PACKAGE)
    done = subprocess.run(
        [program], capture_output=True, text=True, timeout=60, env=env, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[1, 2]\nsent\n0\n"
