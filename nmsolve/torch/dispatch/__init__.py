"""2:4 linear layers on sparse tensor cores: what a machine can run, packing, the layers, and the
measurements that decide.

Modules, lowest first; one imports only those before it:

    availability, timing, recording → packing → algorithms → masked_product, decisions →
    sparse_linear → packed_linear → measuring, refusals, exchanging → accelerate
"""
