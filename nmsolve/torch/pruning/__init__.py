"""Pruning of trained models: masks chosen and kept weights adjusted, layer by layer, from
calibration inputs.

From below: `problem` is a layer's least-squares problem; `least_squares`, `adam`, `obs` and `admm`
solve it or choose its mask; `batch_norm`, `pruned_layer`, `stages` and `collect` run the model;
`reconstruction` is the report; `layerwise` prunes all layers or none; `adaprune`, `sparsegpt` and
`matching` are the public functions.
"""
