"""`SparseModel`: masks kept in step with an optimizer, and taken off with the zeros baked in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nmsolve.errors import InputError, SolverError
from nmsolve.torch.training.found import Found, adapted_layers, find, first_of
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.training.method import Method
from nmsolve.torch.training.optimizers import hooked, share_out
from nmsolve.torch.training.packed_products import accelerate_layers
from nmsolve.torch.training.removal import check_removable, remove
from nmsolve.torch.training.stats import Stats, stats_of
from nmsolve.torch.training.stepping import Attachment
from nmsolve.torch.verification import ModelReport, report_on
from nmsolve.torch.weights.coverage import coverage_of
from nmsolve.torch.weights.layer_plan import Plan


class SparseModel:
    """A model with masks on it, made by `sparsify_`.

    Attributes
    ----------
    model : nn.Module
        The one that was given; its modules and parameters are the same objects.
    plan : Plan
    method : Method
    acceleration : dict of str to str
        By layer path, the backend that multiplies, or why the dense product does. Empty unless
        `sparsify_` was asked to accelerate.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        method: Method,
        *,
        run: str,
        scored: bool,
        accelerate: bool,
    ) -> None:
        self.model = model
        self.plan = plan
        self.method = method
        self._run = run
        self._scored = scored
        self._attachments: list[Attachment] = []
        self._finalized = False
        self._versions = {id(layer.masked): _version(layer.parameter) for layer in self.layers}
        self.acceleration = accelerate_layers(self.layers) if accelerate else {}

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The masked weights that the model has now."""
        return find(self.model, self.plan, self._run).layers

    def attach(self, *optimizers: Optimizer) -> Self:
        """Let the method work in the steps of an optimizer, or of several that hold the weights
        between them.

        Attaching again replaces what was attached before: after the optimizer was made again, or
        the model was sharded.

        Parameters
        ----------
        *optimizers : torch.optim.Optimizer
            Or a wrapper of Accelerate or Lightning around one.

        Returns
        -------
        SparseModel
            Itself.

        Raises
        ------
        InputError
            If no optimizer holds a weight that is trained, or a rank's shard cuts blocks. What was
            attached before still is.
        """
        self._check_open()
        if not optimizers:
            raise InputError(
                "attach takes the optimizer that trains the model: sparse.attach(optimizer)"
            )
        raw = [hooked(optimizer) for optimizer in optimizers]
        layers = self._find(self.model).layers
        held, waiting = share_out(layers, raw, frozen=not self.method.needs_training)
        news = []
        try:
            for optimizer, own in zip(raw, held, strict=True):
                if own or waiting:
                    news.append(Attachment(optimizer, own, waiting, self.method))
        except BaseException:
            for attachment in news:
                attachment.detach()
            raise
        self.detach()
        self._attachments = news
        return self

    def detach(self) -> None:
        """Take the method out of the optimizers' steps; masks stay as they are. Does nothing if
        there is none.
        """
        for attachment in self._attachments:
            attachment.detach()
        self._attachments = []

    def stats(self) -> Stats:
        """Return density, flips and SAD so far, of each layer and in all, which planned weights the
        model has no more, and which share of its parameters have masks.
        """
        self._check_open()
        found = self._find(self.model)
        coverage = coverage_of(self.model, found.entries)
        return stats_of(found.layers, found.gone, self.method.straight_through, coverage)

    def refresh_(self, model: nn.Module | None = None) -> Self:
        """Choose all masks again, from the weights (LBC: the candidates) as they are now, not
        waiting for a step that is due.

        For weights that came from elsewhere: a dense checkpoint, or an average that mixed masks
        (AveragedModel(use_buffers=True), Lightning's EMAWeightAveraging).

        Parameters
        ----------
        model : nn.Module, optional
            A copy of the model whose masks to choose instead.

        Returns
        -------
        SparseModel
            Itself.

        Raises
        ------
        InputError
            If a weight is not finite, naming the layer; all masks are then as they were.
        """
        if model is None:
            self._check_open()
        if self._scored:
            raise InputError(
                "these masks were chosen by scores of the weights as they were: score the model "
                "again, and sparsify_ it with those (finalize_ it first)"
            )
        layers = self._find(self.model if model is None else model).layers
        trained = {layer.masked.path: layer for layer in self.layers}
        with torch.no_grad():
            self.method.refresh(
                layers,
                [
                    layer if model is None else trained.get(layer.masked.path, layer)
                    for layer in layers
                ],
            )
        return self

    def finalize_(self, model: nn.Module | None = None) -> ModelReport:
        """End training: plain modules again, with the zeros baked into their weights, and detach
        from the optimizers.

        Parameters
        ----------
        model : nn.Module, optional
            A copy of the model (copy.deepcopy, torch.optim.swa_utils.AveragedModel) to finalize
            instead; the model itself and its training are not touched.

        Returns
        -------
        ModelReport
            Of the finalized weights: every one satisfies its pattern. `gone` lists planned weights
            that the model has no more, or without a mask, because it was changed (a head that was
            swapped); a warning names them too.

        Raises
        ------
        InputError
            If it was finalized before, LBC has not come to its end, or weights are sharded. The
            model is then as it was.
        SolverError
            If a mask does not satisfy its pattern, which something outside must have changed.

        Notes
        -----
        `nmsolve.torch.remove_masks_(model)` takes masks off whatever has become of the training.
        """
        if model is None:
            self._check_open()
        subject = self.model if model is None else model
        found = self._find(subject)
        if model is not None and self._is_trained(found):
            return self.finalize_()
        if model is None:
            why = self.method.unfinished(found.layers)
            if why:
                raise InputError(why)
            self._warn_of_stale_masks(found.layers)
        check_removable(found.entries)
        adapted = adapted_layers(subject, found)
        report = report_on(subject, found.entries)
        if not report:
            raise SolverError(
                "masks do not satisfy the plan: something else has changed them, as "
                "AveragedModel(use_buffers=True) does; "
                "nothing was finalized. refresh_() chooses them anew for the weights as they "
                f"are\n{report}"
            )
        remove(subject, found.entries, zeros=True)
        if model is None:
            self.detach()
            self._finalized = True
        if adapted:
            warnings.warn(
                f"adapters are on {first_of(adapted)}: "
                "merged from now on, they make the weights dense again. Merge them "
                "(merge_and_unload) before finalize_",
                stacklevel=2,
            )
        if found.gone:
            names = ", ".join(found.gone[:5]) + (
                f" and {len(found.gone) - 5} more" if len(found.gone) > 5 else ""
            )
            warnings.warn(
                f"the model has changed since sparsify_: {names} of the plan are gone, or have no "
                "mask any more; what replaced them is as it is",
                stacklevel=2,
            )
        return report_on(subject, found.entries, found.gone)

    def _warn_of_stale_masks(self, layers: Sequence[MaskedLayer]) -> None:
        """Warn of training without attach, which fails nowhere: the masks are those of the first
        weights, and good for nothing.
        """
        chosen = any(
            layer.masked.progress.step or layer.masked.progress.refreshes for layer in layers
        )
        # Others may have changed by a merge.
        trained = [layer for layer in layers if layer.parameter.requires_grad]
        changed = any(
            _version(layer.parameter) != self._versions.get(id(layer.masked)) for layer in trained
        )
        if self.method.straight_through and changed and not chosen:
            warnings.warn(
                "the weights have changed since sparsify_, but no step of an attached optimizer "
                "has chosen masks for them: call sparse.attach(optimizer) before training, or give "
                "the trainer nmt.TrainerCallback(sparse) or nmt.LightningCallback(sparse); "
                "sparse.refresh_() chooses masks for weights that were loaded",
                stacklevel=3,
            )

    @property
    def finalized(self) -> bool:
        """True once `finalize_` has taken the masks off."""
        return self._finalized

    def _is_trained(self, found: Found) -> bool:
        """Return whether layers are those that are trained, not copies of them; raise InputError if
        some of those are not among them.
        """
        trained = {id(layer.masked) for layer in self.layers}
        among = {id(layer.masked) for layer in found.layers} & trained
        if among and among != trained:
            raise InputError(
                "this is no copy of the model: it shares some of its layers, which are trained. "
                "Finalize the model, or a copy.deepcopy of this"
            )
        return bool(among)

    def _find(self, model: nn.Module) -> Found:
        """Return the planned weights that a model has; raise InputError if it has none."""
        found = find(model, self.plan, self._run)
        if not found.layers:
            raise InputError(
                f"this {type(model).__name__} has no mask of this plan: it is finalized already, "
                "no copy of the model, or its planned layers were replaced "
                f"({first_of(found.gone)})"
            )
        return found

    def _check_open(self) -> None:
        if self._finalized:
            raise InputError(
                "this model is finalized: its masks are baked into its weights; sparsify_ it again "
                "to train it further"
            )

    def __repr__(self) -> str:
        state = "finalized" if self._finalized else f"{len(self._attachments)} optimizers attached"
        return f"<SparseModel: {len(self.plan.planned)} layers, {self.method}, {state}>"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_attachments": []}  # hooks belong to the optimizer of this process


def _version(weight: Tensor) -> int:
    """Return a number that changes when a weight does."""
    return 0 if weight.is_inference() else weight._version
