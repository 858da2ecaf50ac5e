"""`LightningCallback`: masks in Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from nmsolve.errors import MissingDependencyError
from nmsolve.torch.training.callback import Callback

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise MissingDependencyError(
            "nmt.LightningCallback needs lightning: pip install 'nmsolve[lightning]'"
        ) from error


class LightningCallback(Callback, pl.Callback):  # type: ignore[misc]
    """Attach a sparsified model to the optimizers that a LightningModule makes, and log its masks'
    density, SAD and flips.

    Parameters
    ----------
    sparse : SparseModel
        From `sparsify_` on the LightningModule, or on a model inside it.

    Attributes
    ----------
    sparse : SparseModel
        As given.

    Raises
    ------
    InputError
        When training begins, if the LightningModule does not contain the model.

    Notes
    -----
    Checkpoints hold masks and counters; ckpt_path continues with them, on a model that was
    sparsified with the same plan and method. Call sparse.finalize_() after training, before the
    model is saved for use.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers that hold weights with masks."""
        self._attach(pl_module, *trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Log; the Trainer decides how often it writes."""
        numbers = {name: float(number) for name, number in self._numbers().items()}
        pl_module.log_dict(numbers, on_step=True, on_epoch=False)
