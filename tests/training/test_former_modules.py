"""Models that were pickled whole by 0.1, when masks and their tensors were elsewhere in the
package.

`pickled_by_0_1.pt` holds two layers after two steps of SGD, the first with SRSTE's mask, the second
with LBC's.
"""

from pathlib import Path

import pytest
import torch

import nmsolve.torch as nmt
from nmsolve.torch.weights.masked import Masked

PICKLED = Path(__file__).with_name("pickled_by_0_1.pt")


def test_a_model_that_was_pickled_whole_goes_on():
    with pytest.warns(DeprecationWarning, match="save again what was pickled") as seen:
        model = torch.load(PICKLED, weights_only=False)
    told = {str(warning.message).partition(",")[0] for warning in seen}
    assert {
        "nmsolve.torch.training.parametrization.Masked is now nmsolve.torch.weights.masked.Masked",
        "nmsolve.torch.training.written.Written is now nmsolve.torch.weights.written.Written",
    } <= told
    masks = [module.parametrizations.weight[0] for module in model]
    assert all(type(masked) is Masked for masked in masks)
    assert [masked.progress.step for masked in masks] == [2, 2]
    assert masks[0].mask.tolist() == [[False, False, True, True]] * 2
    assert masks[1].candidates.left == 1
    assert nmt.verify(model, "2:4").ok
    model[0].weight.data.fill_(2.0)  # writing through module.weight works as of a new mask
    assert model[0].parametrizations.weight.original.tolist() == [[2.0] * 4] * 2
    assert "0.weight_mask" in model.state_dict()


def test_names_that_never_were():
    import nmsolve.torch.training.parametrization as former

    with pytest.raises(AttributeError, match="no attribute 'Unmasked'"):
        former.Unmasked  # noqa: B018
