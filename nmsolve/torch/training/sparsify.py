"""`sparsify_`: put masks on a model, keep them in step with an optimizer, and take them off with
the zeros baked in.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from nmsolve.errors import InputError, SolverError
from nmsolve.selection import Patterns
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.training import state_dict as checkpoint
from nmsolve.torch.training.found import Found, adapted_layers, find
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.training.method import SRSTE, Method
from nmsolve.torch.training.mounting import put_on
from nmsolve.torch.training.optimizers import stepping
from nmsolve.torch.training.removal import check_removable, remove
from nmsolve.torch.training.stats import Stats, stats_of
from nmsolve.torch.training.stepping import Attachment
from nmsolve.torch.verification import ModelReport, planned_modules, report_on
from nmsolve.torch.weights.given_scores import scores_for
from nmsolve.torch.weights.layer_kinds import reduction_axis
from nmsolve.torch.weights.masked import Masked, masked_parameters
from nmsolve.torch.weights.planning import Plan, parameters_of, path_of
from nmsolve.torch.weights.planning import plan as make_plan
from nmsolve.torch.weights.sharding import is_sharded


def sparsify_(
    model: nn.Module,
    plan: Plan | Patterns,
    method: Method | None = None,
    accelerate: bool = False,
    *,
    scores: Mapping[str, Tensor] | None = None,
) -> SparseModel:
    """Put a mask on every planned weight of a model, in place, to be trained by a method.

    Parameters
    ----------
    model : nn.Module
        Before it is wrapped: first sparsify_, then DistributedDataParallel, fully_shard or
        torch.compile. Its parameters stay the same objects, so an optimizer that holds them goes
        on.
    plan : Plan, or pattern
        From `nmsolve.torch.plan`; a pattern, or a mapping of globs to patterns, means the default
        plan for it.
    method : Fixed, STE, SRSTE or LBC
        SRSTE() unless given.
    accelerate : bool
        Multiply nn.Linear layers under 2:4T masks by packed sparse tensors, forward and backward,
        where the GPU can; elsewhere the numbers are those of the masked dense weight. Which layers,
        and why not others, is in the result's `acceleration`.
    scores : mapping of layer paths to tensors of the weights' shapes, optional
        What `Fixed` masks maximise instead of |W|, from `nmsolve.torch.scores`; None: the plan's,
        if it was made with some. The other methods choose masks anew while they train, by their own
        `score`.

    Returns
    -------
    SparseModel
        On which `attach(optimizer)` is called before training and `finalize_()` after it.

    Raises
    ------
    InputError, PatternError
        If the plan has nothing to do or is another model's, the model has masks already, a weight
        is not finite, or the method cannot serve a pattern. The model is then as it was.

    Notes
    -----
    Masks are parametrizations (torch.nn.utils.parametrize): module.weight is the masked weight,
    computed from the dense parameter at every use. Assigning module.weight sets the dense one, and
    so does writing into what module.weight returned, in the entries that were written:
    initialisations and adapters that are merged reach the dense weight (`written.py`). State dicts
    hold the dense weight under its plain name, the mask in bits and the counters, so that a resumed
    run continues bit for bit (`nmsolve/torch/training/checkpoint.py` gives the format).

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    >>> sparse = sparsify_(model, "2:4T", SRSTE(decay=2e-4)).attach(optimizer)
    >>> for _ in range(3):
    ...     loss = model(torch.randn(4, 16)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> sparse.stats().density
    0.5
    >>> sparse.finalize_().ok, type(model[0]).__name__, int(model[0].weight.count_nonzero())
    (True, 'Linear', 256)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module, got {type(model).__name__}")
    method = SRSTE() if method is None else method
    if not isinstance(method, Method):
        raise InputError(
            "method must be one of nmt.Fixed(), nmt.STE(), nmt.SRSTE() and nmt.LBC(…), got "
            f"{method!r}"
        )
    masked = [name for name, module in model.named_modules() if masked_parameters(module)]
    if masked:
        raise InputError(
            "the model is sparsified already "
            f"({', '.join(masked[:3])}{', …' if len(masked) > 3 else ''}): finalize_ it first, "
            "train on with the SparseModel that sparsify_ returned, or take the masks off with "
            "nmt.remove_masks_(model)"
        )
    if not isinstance(plan, Plan):
        plan = make_plan(model, plan)
    if not plan.planned:
        raise InputError(f"the plan has nothing to do, every weight is skipped:\n{plan}")
    sparse = SparseModel(model, plan, method, plan.scores if scores is None else scores)
    if accelerate:
        from nmsolve.torch.training.packed_products import accelerate_layers

        sparse.acceleration = accelerate_layers(sparse.layers)
    return sparse


class SparseModel:
    """A model with masks on it. Made by `sparsify_`.

    model, plan, method : as given. acceleration : by layer path, who multiplies or why nobody but
    the dense product does; empty unless sparsify_ was asked to accelerate.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        method: Method,
        scores: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.method = method
        self._scored = scores is not None
        self.acceleration: dict[str, str] = {}
        self._attachments: list[Attachment] = []
        self._finalized = False
        self._run = uuid.uuid4().hex
        modules = planned_modules(model, plan)
        weights = []
        for entry, module in zip(plan.planned, modules, strict=True):
            weight = parameters_of(module)[entry.parameter]
            if is_sharded(weight):
                raise InputError(
                    f"layer {entry.path} is sharded already: sparsify_ the model first, then "
                    "fully_shard it"
                )
            if reduction_axis(module, entry.parameter) != entry.axis or parametrize.is_parametrized(
                module
            ):
                raise InputError(
                    f"layer {entry.path} is a {type(module).__name__}, planned was a {entry.kind}: "
                    "make a new plan"
                )
            for part in checkpoint.PARTS:
                if hasattr(module, f"{entry.parameter}_{part}"):
                    raise InputError(
                        f"layer {entry.path} has an attribute {entry.parameter}_{part} of its own, "
                        "which is what a part of the mask is called in checkpoints: rename it, or "
                        "leave the layer out of the plan"
                    )
            weights.append(
                check_weight(
                    weight, f"the weight of layer {entry.path}", f"pattern {entry.pattern}"
                )
            )
        _check_ties(model, plan)
        method.check(plan.planned, weights)
        if scores is not None:
            method.check_scores(plan.planned, scores)
        masks: dict[int, Masked] = {}
        puts: list[tuple[nn.Module, str, Masked]] = []
        for entry, module, weight in zip(plan.planned, modules, weights, strict=True):
            assert entry.pattern is not None
            assert entry.axis is not None
            key = id(parameters_of(module)[entry.parameter])
            if key not in masks:
                given = None if scores is None else scores_for(entry, scores).to(weight.device)
                mask = method.initial(entry, weight, given)
                masks[key] = Masked(
                    mask,
                    entry.pattern,
                    entry.axis,
                    entry.padding,
                    method.straight_through,
                    entry.path,
                    self._run,
                )
            puts.append((module, entry.parameter, masks[key]))
        # All masks are solved: from here on nothing can fail halfway. The check goes first: it
        # reads what put_on's hooks take out.
        model.register_load_state_dict_pre_hook(checkpoint.check_masks)  # type: ignore[no-untyped-call]
        model.register_load_state_dict_post_hook(checkpoint.name_plainly)  # type: ignore[no-untyped-call]
        for module, parameter, masked in puts:
            put_on(module, parameter, masked)
        self._versions = {id(layer.masked): _version(layer.parameter) for layer in self.layers}

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The masked weights that the model has now."""
        return find(self.model, self.plan, self._run).layers

    def attach(self, *optimizers: Optimizer) -> Self:
        """Let the method work in the steps of an optimizer, or of several that hold the weights
        between them.

        Attaching again replaces what was attached before: after the optimizer was made anew, or the
        model was sharded.

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
        raw = [stepping(optimizer) for optimizer in optimizers]
        held: list[list[MaskedLayer]] = [[] for _ in raw]
        owners = [
            {id(p) for group in optimizer.param_groups for p in group["params"]}
            for optimizer in raw
        ]
        lost, waiting = [], []
        for layer in self._find(self.model).layers:
            holding = [i for i, owned in enumerate(owners) if id(layer.parameter) in owned]
            if len({id(raw[i]) for i in holding}) > 1:
                raise InputError(
                    f"the weight of layer {layer.path} is in several of these optimizers: attach "
                    "those that hold it once"
                )
            if holding:
                held[holding[0]].append(layer)
            elif layer.parameter.requires_grad or self.method.needs_training:
                lost.append(layer.path)
            else:
                waiting.append(layer)
        if lost:
            names = " and ".join(type(optimizer).__name__ for optimizer in raw)
            more = f" and {len(lost) - 5} more layers" if len(lost) > 5 else ""
            frozen = (
                "" if self.method.needs_training else ", or freeze them with requires_grad_(False)"
            )
            raise InputError(
                f"the {names} does not hold the weight of {', '.join(lost[:5])}{more}: make it "
                "from the parameters of this model (after fully_shard, if the model is sharded), "
                f"or leave the layers out of the plan{frozen}"
            )
        news = []
        try:
            for optimizer, layers in zip(raw, held, strict=True):
                if layers or waiting:
                    news.append(Attachment(optimizer, layers, waiting, self.method))
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
        """Density, flips and SAD, of each layer and in all, so far; and which planned weights the
        model has no more.
        """
        self._check_open()
        found = self._find(self.model)
        return stats_of(found.layers, found.gone, self.method.straight_through)

    def refresh_(self, model: nn.Module | None = None) -> Self:
        """Choose all masks anew, from the weights (LBC: the candidates) as they are now, not
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
        report = report_on(found.entries)
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
                f"adapters are on {', '.join(adapted[:3])}{', …' if len(adapted) > 3 else ''}: "
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
        return report_on(found.entries, found.gone)

    def _warn_of_stale_masks(self, layers: Sequence[MaskedLayer]) -> None:
        """Training without attach fails nowhere: the masks are those of the first weights, and good
        for nothing.
        """
        chosen = any(
            layer.masked.progress.step or layer.masked.progress.refreshes for layer in layers
        )
        trained = [
            layer for layer in layers if layer.parameter.requires_grad
        ]  # others may have changed by a merge
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
        """Whether `finalize_` has taken the masks off."""
        return self._finalized

    def _is_trained(self, found: Found) -> bool:
        """Whether layers are those that are trained, not copies of them; InputError if some of
        those are not among them.
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
        """What is there of the plan in the model or a copy of it; InputError if it is nothing."""
        found = find(model, self.plan, self._run)
        if not found.layers:
            raise InputError(
                f"this {type(model).__name__} has no mask of this plan: it is finalized already, "
                "no copy of the model, or its planned layers were replaced "
                f"({', '.join(found.gone[:3])}{', …' if len(found.gone) > 3 else ''})"
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
    """Changes when a weight does."""
    return 0 if weight.is_inference() else weight._version


def _check_ties(model: nn.Module, plan: Plan) -> None:
    """InputError if a planned weight is also another's, which the plan gives no mask or another."""
    planned = {(entry.name, entry.parameter): (entry.pattern, entry.axis) for entry in plan.planned}
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for parameter, weight in parameters_of(module).items():
            owners.setdefault(id(weight), []).append((name, parameter))
    for shared in owners.values():
        found = {planned.get(owner) for owner in shared}
        if len(found) > 1:
            names = ", ".join(path_of(*owner) for owner in shared)
            raise InputError(
                f"{names} are one weight, and the plan does not give all of them one mask: make a "
                "new plan for this model"
            )
