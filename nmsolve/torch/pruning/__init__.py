"""Pruning of trained models: masks chosen and kept weights adjusted, layer by layer, from
calibration inputs.

From below: `objective` is a layer's error and `problem` its least-squares problem; `least_squares`,
`adam` and `admm` solve it or choose its mask, with the damping of `held_out`; `pruned_layer`,
`dense_copies` and `batch_norm` are what changes in a model; `layer_step` prunes a layer;
`side_by_side` brings all items to it at once, or else `stages`, `collect` and `whole_passes` run
the model for each stage; `reconstruction` is the report; `layerwise` prunes all layers or none;
`adaprune`, `sparsegpt`, `one_shot` and `matching` are the public functions.
"""
