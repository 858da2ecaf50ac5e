"""Training with masks: `sparsify_` puts them on, methods move them in an optimizer's steps, and
`SparseModel.finalize_` bakes them in.

Modules, lowest first; one imports only those before it:

    former_modules, state_dict → mounting → removal, masked_layer → refreshing, found, optimizers,
    attached_layers, packed_products, stats → method → solved_methods, lbc, stepping →
    sparse_model → sparsify, callback → hugging_face, lightning

A mask's way from `sparsify_` to a file on disk is told in state_dict.py.
"""

from nmsolve.torch.training.former_modules import register

register()
