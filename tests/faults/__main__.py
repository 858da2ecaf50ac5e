"""`python -m tests.faults [WORD …] [--list]`: plant faults, and tell which the tests do not catch.

With words, only the faults whose name or file has one of them. The tests are run once without any
fault first. Exit code 0 if every fault is caught.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.listed import FAULTS
from tests.faults.planting import copy_to, plant, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--list", action="store_true", help="name the faults, plant none")
    options = parser.parse_args()
    chosen = [
        fault
        for fault in FAULTS
        if not options.words
        or any(word in fault.name or word in fault.file for word in options.words)
    ]
    if options.list or not chosen:
        print("\n".join(f"{fault.file}: {fault.name}" for fault in chosen))
        return 0 if chosen else 2
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        outcome, output = run(folder, tests)
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
