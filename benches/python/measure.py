"""One case with one library, in this interpreter: prints the figures, as JSON.

    python benches/python/measure.py MODULE CASE LIBRARY

It imports next to nothing: children of fork servers import it again.
"""

import json
import sys
from importlib import import_module


def main() -> None:
    module, case, library = sys.argv[1:]
    import_module(module)
    print(json.dumps(list(import_module("cases").CASES[case].run(library))))


if __name__ == "__main__":
    main()
