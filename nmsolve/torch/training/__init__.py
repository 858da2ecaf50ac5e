"""Training with masks: which layers get which pattern (`plan`), the masks on them (`sparsify`), and
the methods that move them.

plan → parametrization → methods → sparsify; callbacks on top. Everything that happens during
training happens in optimizer step hooks.
"""
