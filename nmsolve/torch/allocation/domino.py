"""`domino_search`: an n:m pattern for every layer, found while the weights are trained and
shrunk.
"""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.allocation.budget import FLOPs, Latency, Params
from nmsolve.torch.allocation.domino_run import DominoRun, Options, restored, train
from nmsolve.torch.allocation.search import Search
from nmsolve.torch.allocation.searched_weight import SearchedWeight
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.verification import planned_modules
from nmsolve.torch.weights.masked import masked_parameters
from nmsolve.torch.weights.planning import LayerPlan, Plan, parameters_of
from nmsolve.torch.weights.planning import plan as make_plan

POLICIES = ("fixed_m", "fixed_n")


def domino_search(
    model: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    budget: Params | FLOPs,
    m: int = 16,
    *,
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
    r"""DominoSearch: choose n of every m for each layer of a trained model, to meet a budget. The
    model is as before afterwards.

    Weights are trained on, those that are kept under a penalty; n falls by one where they have
    fallen below a threshold:

    .. math::
        \tilde W = M \circ W, \quad W \leftarrow W - \mathrm{lr} \; M \circ \left(\nabla_{\tilde W}
        + \lambda \eta_i W\right), \quad M = \text{best } n_i\text{:}m \text{ mask of } W, \quad n_i
        \leftarrow n_i - 1 \text{ if } \#\{|W| > T\} < n_i \text{ in a share} \ge v_r \text{ of the
        groups of layer } i

    T is, for each group, the mean of the m / 2 smallest :math:`|W|` that it starts with. How fast a
    layer shrinks is a balance of its multiply-adds, and of how far its sparsity :math:`1 - n_i / m`
    is from the one that its shape suggests (`erk_densities`):

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
        What to meet, over all layers that have groups of m. The search ends as soon as it is met.
    m : int
        Length of a group.
    candidates : ints, optional
        What n may be in the plan, besides m: powers of two unless given. The mask's n goes through
        all numbers, a layer's is the last candidate that it has passed.
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
    example_inputs : a tensor, a list or tuple of arguments, or a mapping of keyword arguments,
    optional
        What multiply-adds are counted with, and a FLOPs budget means; otherwise the first batch of
        train_step.
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
    that n drops a step; as in the authors' code the mask's n falls by one, and the plan's, which η
    follows, at the next candidate (it looks between backward and update; here weights are looked at
    after the update). The code has no stop for FLOPs, and ends the process when enough weights are
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
    m = _count(m, "m", 2)
    options = Options(
        m=m,
        candidates=_candidates(candidates, m, policy),
        betas=_betas(betas, budget),
        layerwise=layerwise,
        decay=_positive(decay, "decay"),
        doubling=_counts(doubling, "doubling", 0),
        lr=_positive(lr, "lr"),
        penalty_every=_count(penalty_every, "penalty_every"),
        check_every=_count(check_every, "check_every"),
        vote=_positive(vote, "vote"),
        max_steps=_count(max_steps, "max_steps"),
    )
    if options.vote > 1:
        raise InputError(f"vote is a share of the groups, at most 1, got {vote!r}")
    if not callable(train_step):
        raise InputError(
            "train_step must be a function of the model that returns the loss of a batch, got a "
            f"{type(train_step).__name__}"
        )
    whole = _searched(model, m, include, exclude)
    dominoes = DominoRun(_descents(model, whole, m), budget, options)
    if isinstance(budget, Params):
        dominoes.check_budget()
    with restored(model), torch.enable_grad():
        steps = train(model, train_step, dominoes, example_inputs, progress)
    found = Search(
        _settled(whole, dominoes.layers, policy),
        budget=budget,
        kept_weights=sum(layer.kept_weights for layer in dominoes.layers),
        multiply_adds=math.fsum(layer.multiply_adds for layer in dominoes.layers),
        steps=steps,
        seconds=time.perf_counter() - started,
        history=dominoes.history,
    )
    if not found.reached:
        warnings.warn(
            f"after {steps} iterations the plan costs {found.cost:.0f} {dominoes.unit}, and "
            f"{budget!r} is not met: give it more iterations (max_steps), a larger penalty (decay, "
            "or a smaller penalty_every), or a smaller check_every",
            stacklevel=2,
        )
    return found


def _searched(
    model: nn.Module, m: int, include: str | Iterable[str] | None, exclude: str | Iterable[str]
) -> Plan:
    """Which layers have groups of m; InputError for models that cannot be searched."""
    whole = make_plan(model, Pattern(1, m), include, exclude)
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


def _descents(model: nn.Module, whole: Plan, m: int) -> list[SearchedWeight]:
    """One for each planned weight, however many layers share it."""
    shared: dict[int, tuple[Tensor, list[LayerPlan]]] = {}
    for entry, module in zip(whole.planned, planned_modules(model, whole), strict=True):
        weight = parameters_of(module)[entry.parameter]
        shared.setdefault(id(weight), (weight, []))[1].append(entry)
    return [SearchedWeight(entries, weight, m) for weight, entries in shared.values()]


def _settled(whole: Plan, layers: list[SearchedWeight], policy: str) -> Iterator[LayerPlan]:
    """The entries of the plan, with what layers have come to."""
    found = {entry.path: layer for layer in layers for entry in layer.entries}
    for entry in whole.layers:
        layer = found.get(entry.path)
        if layer is None:
            yield entry
        elif layer.n == layer.m:
            yield replace(entry, pattern=None, reason="left dense by the search")
        else:
            n, m = (layer.n, layer.m) if policy == "fixed_m" else (1, layer.m // layer.n)
            yield replace(entry, pattern=Pattern(n, m))


def _candidates(candidates: Iterable[int] | None, m: int, policy: str) -> tuple[int, ...]:
    """What n may be, in ascending order, with m."""
    if policy not in POLICIES:
        raise InputError(f"policy must be one of {', '.join(map(repr, POLICIES))}, got {policy!r}")
    powers = (2**power for power in range(m.bit_length()))
    given = sorted({*_counts(powers if candidates is None else candidates, "candidates"), m})
    if given[-1] > m or len(given) == 1:
        raise InputError(
            f"candidates are numbers kept of every {m}, some of them smaller than {m}, got "
            f"{candidates!r}"
        )
    odd = [n for n in given if m % n]
    if policy == "fixed_n" and odd:
        raise InputError(
            f"policy='fixed_n' turns n:{m} into 1:({m}/n), and {odd[0]} does not divide {m}: give "
            "other candidates"
        )
    return tuple(given)


def _betas(betas: tuple[float, float] | None, budget: object) -> tuple[float, float]:
    """β1 and β2 for a budget, which is checked with them."""
    if isinstance(budget, Latency):
        raise InputError(
            "domino_search follows kept weights or multiply-adds; a plan under measured times is "
            "nmt.allocate's"
        )
    if not isinstance(budget, Params | FLOPs):
        raise InputError(f"budget must be nmt.Params(…) or nmt.FLOPs(…), got {budget!r}")
    if betas is None:
        return (0.5, 0.5) if isinstance(budget, Params) else (0.8, 0.2)
    try:
        first, second = (float(beta) for beta in betas)
    except (TypeError, ValueError):
        raise InputError(
            f"betas are two numbers, β1 of multiply-adds and β2 of redundancy, got {betas!r}"
        ) from None
    if not (math.isfinite(first + second) and first >= 0 and second >= 0 and first + second > 0):
        raise InputError(f"betas are not negative and not both zero, got {betas!r}")
    return first, second


def _count(number: object, name: str, least: int = 1) -> int:
    try:
        value = -1 if isinstance(number, bool) else operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        value = -1
    if value < least:
        raise InputError(f"{name} must be an integer ≥ {least}, got {number!r}")
    return value


def _counts(numbers: object, name: str, least: int = 1) -> tuple[int, ...]:
    if not isinstance(numbers, Iterable):
        raise InputError(f"{name} takes several integers ≥ {least}, got {numbers!r}")
    return tuple(_count(number, name, least) for number in numbers)


def _positive(number: object, name: str) -> float:
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not math.isfinite(number)
        or number <= 0
    ):
        raise InputError(f"{name} must be a positive number, got {number!r}")
    return float(number)
