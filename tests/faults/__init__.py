"""Faults that the tests must catch, planted one by one: `python -m tests.faults`.

`planting` says what a fault is and plants it in a copy of the repository; the other files list the
faults, a file per folder of tests.
"""
