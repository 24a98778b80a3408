"""``python -m phalanx PROGRAM``: run a program, unchanged, on phalanx."""

from phalanx._program import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
