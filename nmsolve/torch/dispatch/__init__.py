"""2:4 linear layers on sparse tensor cores: what runs here, packing, layers, and the measurements
that decide.

backends → packing → algorithms → masked_linear → sparse_linear, packed_linear → recording, timing,
acceleration → measuring → accelerate.
"""
