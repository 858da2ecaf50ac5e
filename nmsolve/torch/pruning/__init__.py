"""Pruning of trained models: masks chosen and kept weights adjusted, layer by layer, from
calibration inputs.
"""
