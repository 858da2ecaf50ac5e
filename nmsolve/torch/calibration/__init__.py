"""What a model's layers are given: calibration inputs, run through it, and seen as matrices layer
by layer.

`inputs` passes what the user gives to the model; `uses` sees what reaches each planned weight;
`layout` lays weights out beside it.
"""
