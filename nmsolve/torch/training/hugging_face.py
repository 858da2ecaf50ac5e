"""`TrainerCallback`: masks in the Trainer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from nmsolve.errors import MissingDependencyError
from nmsolve.torch.training.callback import Callback

try:
    import transformers
except ImportError as error:
    raise MissingDependencyError(
        "nmt.TrainerCallback needs transformers: pip install 'nmsolve[huggingface]'"
    ) from error


class TrainerCallback(Callback, transformers.TrainerCallback):  # type: ignore[misc]
    """Attach a sparsified model to the optimizer that a Trainer makes, and add its masks' density,
    SAD and flips to the logs.

    Parameters
    ----------
    sparse : SparseModel
        From `sparsify_` on the model that the Trainer is given.

    Attributes
    ----------
    sparse : SparseModel
        As given.

    Raises
    ------
    InputError
        When training begins, if the Trainer has another model.

    Notes
    -----
    Checkpoints of the Trainer hold masks and counters; resume_from_checkpoint continues with them,
    on a model that was sparsified with the same plan and method. The numbers are in
    trainer.state.log_history, and in what callbacks behind this one are given: the Trainer calls
    its own reporters (TensorBoard, W&B) before. Call sparse.finalize_() after training, before the
    model is saved for use.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the Trainer's optimizer."""
        self._attach(kwargs["model"], kwargs["optimizer"])

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the masks' statistics, to this log and to the Trainer's history."""
        if logs is None:
            return
        numbers = self._numbers()
        logs.update(numbers)
        if state.log_history:
            state.log_history[-1].update(numbers)
