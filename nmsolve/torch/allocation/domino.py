"""`domino_search`: an n:m pattern for every layer, found while the weights are trained and
shrunk.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.allocation.budget import FLOPs, Params
from nmsolve.torch.allocation.domino_options import checked_options
from nmsolve.torch.allocation.domino_run import DominoRun, train
from nmsolve.torch.allocation.search import Search
from nmsolve.torch.allocation.searched_weight import SearchedWeight
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.running import restored
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan, PlannedWeight
from nmsolve.torch.weights.masked import masked_parameters
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import planned_modules
from nmsolve.torch.weights.planning import plan as make_plan


def domino_search(
    model: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    budget: Params | FLOPs,
    *,
    m: int = 16,
    candidates: Iterable[int] | None = None,
    policy: str = "fixed_m",
    layerwise: bool = True,
    betas: tuple[float, float] | None = None,
    decay: float = 0.1,
    doubling: Iterable[int] = tuple(range(30_000, 80_001, 10_000)),
    lr: float = 0.01,
    penalty_every: int = 5,
    check_every: int = 100,
    vote: float = 0.75,
    max_steps: int = 100_000,
    example_inputs: Item | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> Search:
    r"""Choose n of every m for each layer of a trained model, to meet a budget, by DominoSearch.
    The model is as before afterwards.

    Weights are trained on, those that are kept under a penalty; n falls by one where they have
    fallen below a threshold:

    .. math::
        \tilde W = M \circ W, \quad
        W \leftarrow W - \mathrm{lr} \; M \circ \left(\nabla_{\tilde W} + \lambda \eta_i W\right),
        \quad M = \text{best } n_i\text{:}m \text{ mask of } W, \\
        n_i \leftarrow n_i - 1 \text{ if } \#\{|W| > T\} < n_i
        \text{ in a share} \ge v_r \text{ of the groups of layer } i

    T is, for each group, the mean of the m / 2 smallest :math:`|W|` that it starts with. A layer
    shrinks the faster, the more multiply-adds it has and the further its sparsity
    :math:`1 - n_i / m` is from the one that its shape suggests (`erk_densities`):

    .. math::
        \eta_i = \beta_1 c_i + \beta_2 r_i, \quad
        c_i = \frac{a_i n_i}{\max_j a_j n_j}, \quad
        r_i = \frac{s_i - (1 - n_i / m)}{\max_j |s_j - (1 - n_j / m)|}

    Parameters
    ----------
    model : nn.Module
        Trained. Layers that have no groups of m stay dense and count for nothing.
    train_step : function of the model
        Returns the loss of the next batch, a scalar tensor with its graph; backward and update are
        done here. During the search the model's weights are the masked ones.
    budget : Params or FLOPs
        The limit, over all layers that have groups of m. The search ends as soon as it is met.
    m : int
        Length of a group.
    candidates : ints, optional
        The n that the plan may have, besides m: powers of two unless given. The mask's n goes
        through all numbers, a layer's is the last candidate that it has passed.
    policy : {"fixed_m", "fixed_n"}
        "fixed_n" turns the n:m that is found into 1:(m/n), which keeps as much. n must divide m.
    layerwise : bool
        False: η = 1 for all layers.
    betas : (float, float), optional
        β1, the weight of multiply-adds, and β2, of redundancy. (0.5, 0.5) for Params and (0.8, 0.2)
        for FLOPs unless given.
    decay : float
        λ.
    doubling : ints
        Iterations at which λ doubles.
    lr : float
        Learning rate of SGD without momentum, for all parameters.
    penalty_every, check_every : int
        Every how many iterations the penalty acts, and n may fall; k_p and K_c of the paper. Both
        begin with the first.
    vote : float
        v_r.
    max_steps : int
        Iterations after which the search ends in any case.
    example_inputs : model inputs, optional
        A tensor, a list or tuple of arguments, or a mapping of keyword arguments: multiply-adds are
        counted for it, and a FLOPs budget limits those. None: the first batch of train_step.
    include, exclude : glob or globs of module paths
        As for `nmsolve.torch.plan`.
    progress : bool, optional
        Whether to show a progress bar; None: on a terminal.

    Returns
    -------
    Search
        A plan, with a pattern for each layer, or the reason that it is dense. To be trained from
        the model as it is: `sparsify_(model, search, nmt.SRSTE())`.

    Raises
    ------
    InputError, PatternError
        If the budget cannot be met, with the smallest that can; if it is met already; if train_step
        returns anything but a finite loss; for options that do not exist, weights that are not
        finite, layers that inputs do not reach. The model is then, and after errors of train_step,
        as it was.

    Warns
    -----
    UserWarning
        If the budget is not met after max_steps; the plan is the one found so far, with
        reached=False.

    Notes
    -----
    A heuristic; `allocate` finds the best plan for a loss that is a sum over layers. The paper says
    that n drops one step; as in the authors' code the mask's n falls by one, and the plan's, which
    η follows, at the next candidate (it looks between backward and update; here weights are looked
    at afterwards). The code has no stop for FLOPs, and ends the process when enough weights are
    gone; here either budget ends in a plan. Target sparsities s are ERK's for the share that the
    budget leaves, 1 − limit / dense, which under FLOPs too is taken as a share of the weights. η
    may be negative, and then weights grow.

    Ties between weights keep the lowest index. A tied weight is one decision, counted once, with
    the multiply-adds of all its uses. 16-bit weights are held in float32, where the penalty is not
    lost to rounding. A frozen weight that is planned shrinks without being trained, other frozen
    parameters stay as they are. Flags (train or eval) are left as they are, and random numbers are
    the caller's. Memory: two more copies of the weights, and masks.

    References
    ----------
    Sun, Zhou, Stuijk, Wijnhoven, Nelson, Li, Corporaal: DominoSearch: Find layer-wise fine-grained
    N:M sparse schemes from dense neural networks, NeurIPS 2021, section 3; supplement, section 2
    (fixed n), Table 4 (β) and Table 5 (defaults). ERK: Evci, Gale, Menick, Castro, Elsen: Rigging
    the Lottery, ICML 2020.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    >>> x = torch.randn(64, 16)
    >>> def train_step(model):
    ...     return (model(x) - x).square().mean()
    >>> before = model[0].weight.clone()
    >>> often = {"penalty_every": 1, "check_every": 2}
    >>> found = domino_search(model, train_step, Params(300), m=8, decay=10.0, **often)
    >>> found.reached, found.cost <= 300, torch.equal(model[0].weight, before)
    (True, True, True)
    >>> sum(layer.pattern.density * 512 for layer in found.planned) == found.kept_weights
    True
    """
    started = time.perf_counter()
    options = checked_options(
        m=m,
        candidates=candidates,
        policy=policy,
        budget=budget,
        betas=betas,
        layerwise=layerwise,
        decay=decay,
        doubling=doubling,
        lr=lr,
        penalty_every=penalty_every,
        check_every=check_every,
        vote=vote,
        max_steps=max_steps,
    )
    if not callable(train_step):
        raise InputError(
            "train_step must be a function of the model that returns the loss of a batch, got a "
            f"{type(train_step).__name__}"
        )
    whole = _plan(model, options.m, include, exclude)
    search = DominoRun(_searched_weights(model, whole, options.m), budget, options)
    if isinstance(budget, Params):
        search.check_budget()
    with restored(model), torch.enable_grad():
        steps = train(model, train_step, search, example_inputs, progress)
    found = Search(
        _settled(whole, search.layers, policy),
        budget=budget,
        kept_weights=sum(layer.kept_weights for layer in search.layers),
        multiply_adds=math.fsum(layer.multiply_adds for layer in search.layers),
        steps=steps,
        seconds=time.perf_counter() - started,
        history=search.history,
    )
    if not found.reached:
        warnings.warn(
            f"after {steps} iterations the plan costs {found.cost:.0f} {search.unit}, and "
            f"{budget!r} is not met: give it more iterations (max_steps), a larger penalty (decay, "
            "or a smaller penalty_every), or a smaller check_every",
            stacklevel=2,
        )
    return found


def _plan(
    model: nn.Module, m: int, include: str | Iterable[str] | None, exclude: str | Iterable[str]
) -> Plan:
    """The layers that have groups of m; InputError for models that cannot be searched."""
    whole = make_plan(model, Pattern(1, m), include=include, exclude=exclude)
    masked = [name for name, module in model.named_modules() if masked_parameters(module)]
    if masked:
        raise InputError(
            f"the model is sparsified already (layer {masked[0]}): finalize_ it first, or search "
            "before sparsify_"
        )
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise InputError(
            "the model has lazy modules that are not initialised yet: run it once first"
        )
    if not whole.planned:
        raise InputError(f"no weight has groups of {m}, so there is nothing to search:\n{whole}")
    return whole


def _searched_weights(model: nn.Module, whole: Plan, m: int) -> list[SearchedWeight]:
    """Each planned weight once, however many layers share it."""
    shared: dict[int, tuple[Tensor, list[PlannedWeight]]] = {}
    for entry, module in zip(whole.planned, planned_modules(model, whole), strict=True):
        weight = parameters_of(module)[entry.parameter]
        shared.setdefault(id(weight), (weight, []))[1].append(entry)
    return [SearchedWeight(entries, weight, m) for weight, entries in shared.values()]


def _settled(whole: Plan, layers: list[SearchedWeight], policy: str) -> Iterator[LayerPlan]:
    """The entries of the plan, with the patterns that the search ended at."""
    found = {entry.path: layer for layer in layers for entry in layer.entries}
    for entry in whole.layers:
        if not isinstance(entry, PlannedWeight):
            yield entry
            continue
        layer = found[entry.path]
        if layer.n == layer.m:
            yield entry.skipped("left dense by the search")
        else:
            n, m = (layer.n, layer.m) if policy == "fixed_m" else (1, layer.m // layer.n)
            yield entry.with_pattern(Pattern(n, m))
