"""`python -m tests.faults [WORD …] [--list]`: plant faults, and tell which the tests do not catch.

With words, only the faults whose name or file has one of them. The tests are run once without any
fault first. Exit code 0 if every fault is caught.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.listed import FAULTS, as_markdown
from tests.faults.planting import copy_to, plant, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--list", action="store_true", help="print the list of the README alone")
    options = parser.parse_args()
    if options.list:
        print(as_markdown())
        return 0
    chosen = [
        fault
        for fault in FAULTS
        if not options.words
        or any(word in fault.name or word in fault.file for word in options.words)
    ]
    if not chosen:
        print("no fault has one of these words in its name or its file")
        return 2
    # Last those after which kernels are compiled again for everything else.
    chosen.sort(key=lambda fault: fault.recompiles)
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        outcome, output = run(folder, tests, limit=None)
        if outcome != "passed":
            print(f"{output}\nwithout any fault these tests are {outcome}")
            return 1
        for fault in chosen:
            started = time.perf_counter()
            outcome, output = plant(folder, fault)
            caught = outcome == "failed"
            print(
                f"{'caught' if caught else 'MISSED'}  {time.perf_counter() - started:5.1f} s  "
                f"{fault.file}: {fault.name}",
                flush=True,
            )
            if not caught:
                print(output)
                missed.append(fault)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
