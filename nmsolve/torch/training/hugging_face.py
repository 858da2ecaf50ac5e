"""`TrainerCallback`: masks in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from nmsolve.errors import InputError, MissingDependencyError
from nmsolve.torch.training.sparsify import SparseModel

try:
    import transformers
except ImportError as error:
    raise MissingDependencyError("nmt.TrainerCallback needs transformers: pip install 'nmsolve[huggingface]'") from error


class TrainerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Attaches a sparsified model to the optimizer that a Trainer makes, and adds its masks' density, SAD and flips to the logs.

    Parameters
    ----------
    sparse : SparseModel
        From `sparsify_` on the model that the Trainer is given.

    Raises
    ------
    InputError
        When training begins, if the Trainer has another model.

    Notes
    -----
    Checkpoints of the Trainer hold masks and counters; resume_from_checkpoint continues with them, on a model that was sparsified
    with the same plan and method. The
    numbers are in trainer.state.log_history, and in what callbacks behind this one are given: the Trainer calls its own reporters
    (TensorBoard, W&B) before. Call sparse.finalize_() after training, before the model is saved for use.
    """

    def __init__(self, sparse: SparseModel) -> None:
        if not isinstance(sparse, SparseModel):
            raise InputError(f"TrainerCallback takes what sparsify_ returned, got {type(sparse).__name__}")
        self.sparse = sparse

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the Trainer's optimizer."""
        model = kwargs.get("model")
        if model is not None and all(module is not self.sparse.model for module in model.modules()):
            raise InputError(
                f"the Trainer trains a {type(model).__name__} that is not, and does not contain, the model that was "
                "sparsified: give both the same one"
            )
        self.sparse.attach(kwargs["optimizer"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add the masks' statistics, to this log and to the Trainer's history."""
        if logs is None or self.sparse.finalized:
            return
        stats = self.sparse.stats()
        numbers = {"nm_density": stats.density, "nm_sad_share": stats.sad_share, "nm_flips": stats.flips}
        logs.update(numbers)
        if state.log_history:
            state.log_history[-1].update(numbers)
