"""What a GPU is asked to show: masks, packing and linear layers. Needs nothing beyond torch, Triton, NumPy and numba."""
