"""``python -m phalanx PROGRAM``: run a program, unchanged, on phalanx."""

from phalanx._program import main

main()
