"""Everything that training has moved, to be compared bit for bit."""

import torch


def snapshot(model, optimizer=None):
    """Weights, masks, counters and LBC's candidates; with an optimizer its momenta too."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if optimizer is not None:
        for i, state in enumerate(optimizer.state_dict()["state"].values()):
            tensors |= {
                f"optimizer.{i}.{key}": torch.as_tensor(value).clone()
                for key, value in state.items()
                if value is not None
            }
    return tensors


def differing(found, expected):
    """Names of the tensors that are not the same."""
    assert found.keys() == expected.keys()
    return [name for name in found if not torch.equal(found[name], expected[name])]


def hooks_of(optimizer):
    """How many step hooks an optimizer has; trainers themselves, which may wrap it, put on none."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)
