"""Have a Rust program double numbers in shared memory: ``double_in_rust.py PROGRAM``.

The program is ``crates/phalanx/examples/double.rs``. Nothing is sent but the memory's name.
"""

import subprocess
import sys

from phalanx.shared_memory import SharedMemory


def main() -> None:
    numbers = [1.5, 2.5, 3.5]
    block = SharedMemory(create=True, size=8 * len(numbers))
    try:
        with block.buf.cast("d") as view:
            for i, number in enumerate(numbers):
                view[i] = number
            subprocess.run([sys.argv[1], block.name, str(len(numbers))], check=True)
            print(view.tolist())
    finally:
        block.close()
        block.unlink()


if __name__ == "__main__":
    main()
