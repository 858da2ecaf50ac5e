"""`Callback`: what the callbacks of all trainers share. It attaches to the optimizers once they are
made, and reports on the masks.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from nmsolve.errors import InputError
from nmsolve.torch.training.sparse_model import SparseModel


class Callback:
    """The half of a trainer's callback that is the same for every trainer.

    Parameters
    ----------
    sparse : SparseModel
        From `sparsify_` on the model that is trained, or on one inside it.

    Attributes
    ----------
    sparse : SparseModel
        As given.
    """

    def __init__(self, sparse: SparseModel) -> None:
        if not isinstance(sparse, SparseModel):
            raise InputError(
                f"{type(self).__name__} takes what sparsify_ returned, got {type(sparse).__name__}"
            )
        self.sparse = sparse

    def _attach(self, trained: nn.Module, *optimizers: Optimizer) -> None:
        if all(module is not self.sparse.model for module in trained.modules()):
            raise InputError(
                f"the {type(trained).__name__} is not, and does not contain, the model that was "
                "sparsified: give both the same one"
            )
        self.sparse.attach(*optimizers)

    def _numbers(self) -> dict[str, float]:
        """Return numbers for a log; none once the masks are off."""
        if self.sparse.finalized:
            return {}
        stats = self.sparse.stats()
        return {
            "nm_density": stats.density,
            "nm_sad_share": stats.sad_share,
            "nm_flips": stats.flips,
        }
