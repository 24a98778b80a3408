"""A pipe between a Python and a Rust program, `crates/phalanx/examples/word_lengths.rs`."""

import array
import subprocess
import sys

import phalanx


def main() -> None:
    """Have the Rust program count the letters of words."""
    here, there = phalanx.Pipe()
    with here, subprocess.Popen(sys.argv[1:], stdin=there) as program:
        there.close()
        for text in ("we share a pipe", "and no more"):
            here.send_bytes(text.encode())
            lengths = array.array("Q", here.recv_bytes())
            print(f"{text}: {lengths.tolist()}")
        here.close()  # so there is nothing more for the program to receive
        print("exit status", program.wait())


if __name__ == "__main__":
    main()
