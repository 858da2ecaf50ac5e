"""Calibration inputs, run through a model, and seen as matrices layer by layer.

From below: `inputs` passes the user's items to the model; `convolutions` and `products` serve
weights that are multiplied in ways of their own; `activations` sees the inputs of each planned
weight; `moments` and `gradients` are sums over the calibration.
"""
