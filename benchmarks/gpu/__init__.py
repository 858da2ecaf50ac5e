"""What a GPU is asked to show, stage by stage, each in a process of its own. Needs nothing beyond
torch, Triton, NumPy and numba.

Upwards: `lines` (what was measured, on the disk), `rows` (what a line says), `stages/` (what
measures), `process` (a stage, from the inside), `status`, `tables` and `report` (lines as
Markdown), `run` (the stages, from the outside).
"""
