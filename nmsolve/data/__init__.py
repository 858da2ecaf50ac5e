"""The demo's checkpoint: see `benchmarks/train_digits.py`."""
