"""DominoSearch written out in loops over groups, for weights (out, in) and (out, in, kh, kw) as
NumPy arrays.

Sun et al. 2021, with what the authors' code does where the text is open. Nothing is fast here, and
nothing is shared with nmsolve.
"""

import itertools
from collections import namedtuple

import numpy as np

#: What a run came to, and the masked weights, η and mask n that every iteration was computed with.
Run = namedtuple("Run", "n history weights dense others seen etas walks steps")


def groups(W, m):
    """Index lists of m consecutive input channels, for every output and kernel position."""
    for where in itertools.product(*(range(size) for size in (W.shape[0], *W.shape[2:]))):
        for start in range(0, W.shape[1], m):
            yield [(where[0], start + i, *where[1:]) for i in range(m)]


def mask_of(W, n, m):
    """The n largest |w| of every group; among equals the first."""
    mask = np.zeros(W.shape, bool)
    for group in groups(W, m):
        for i in sorted(range(m), key=lambda i: (-abs(W[group[i]]), i))[:n]:
            mask[group[i]] = True
    return mask


def thresholds_of(W, m):
    """The mean of the smallest half of |w|, for each group."""
    found = []
    for group in groups(W, m):
        smallest = sorted(abs(W[index]) for index in group)[: m // 2]
        found.append(sum(smallest) / len(smallest))
    return found


def share_below(W, thresholds, n, m):
    """The share of groups with fewer than n weights above their threshold."""
    votes = [
        sum(abs(W[index]) > T for index in group) < n
        for group, T in zip(groups(W, m), thresholds, strict=True)
    ]
    return sum(votes) / len(votes)


def erk(shapes, density):
    """Densities min(1, ε Σ dims / Π dims) that keep a share of all weights; ε by bisection."""
    wanted = density * sum(np.prod(shape) for shape in shapes)

    def densities(epsilon):
        return [min(1.0, epsilon * sum(shape) / np.prod(shape)) for shape in shapes]

    low, high = 0.0, 1.0
    while sum(d * np.prod(s) for d, s in zip(densities(high), shapes, strict=True)) < wanted * (
        1 - 1e-12
    ):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if sum(d * np.prod(s) for d, s in zip(densities(middle), shapes, strict=True)) < wanted:
            low = middle
        else:
            high = middle
    return densities(high)


def etas_of(macs, n, m, sparsity, beta1, beta2):
    """η of each layer: its share of the work, and how far it is from its target sparsity."""
    work = [a * k / m for a, k in zip(macs, n, strict=True)]
    left = [s - (1 - k / m) for s, k in zip(sparsity, n, strict=True)]
    etas = []
    for i in range(len(macs)):
        c = work[i] / max(work)
        r = 0.0 if max(left) < 0.01 else left[i] / max(abs(x) for x in left)
        etas.append(beta1 * c + beta2 * r)
    return etas


def search(
    weights,
    others,
    gradients,
    macs,
    limit,
    m,
    by_macs=False,
    beta=None,
    layerwise=True,
    decay=0.1,
    doubling=(),
    lr=0.01,
    penalty_every=5,
    check_every=100,
    vote=0.75,
    max_steps=100,
    candidates=None,
):
    """gradients(step, masked weights, others) gives those of both. macs: multiply-adds of each
    dense layer.
    """
    beta1, beta2 = beta or ((0.8, 0.2) if by_macs else (0.5, 0.5))
    if candidates is None:
        candidates = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= m]
    candidates = sorted({*candidates, m})
    price = macs if by_macs else [W.size for W in weights]
    dense = [W.copy() for W in weights]
    others = [p.copy() for p in others]
    T = [thresholds_of(W, m) for W in dense]
    walk, n = [m] * len(dense), [m] * len(dense)
    sparsity = [1 - d for d in erk([W.shape for W in dense], limit / sum(price))]
    etas = etas_of(macs, n, m, sparsity, beta1, beta2) if layerwise else [1.0] * len(dense)
    history, seen, all_etas, walks = [], [], [], []
    for step in range(max_steps):
        masks = [mask_of(W, k, m) for W, k in zip(dense, walk, strict=True)]
        seen.append([W * mask for W, mask in zip(dense, masks, strict=True)])
        all_etas.append(list(etas))
        walks.append(list(walk))
        gs, gs_of_others = gradients(step, seen[-1], others)
        factor = decay
        for milestone in doubling:
            if step >= milestone:
                factor *= 2
        for i, W in enumerate(dense):
            g = gs[i] + factor * etas[i] * W if step % penalty_every == 0 else gs[i]
            dense[i] = W - lr * masks[i] * g
        others = [p - lr * g for p, g in zip(others, gs_of_others, strict=True)]
        if step % check_every == 0:
            for i in range(len(dense)):
                if n[i] > candidates[0] and share_below(dense[i], T[i], walk[i], m) >= vote:
                    walk[i] -= 1
                    if walk[i] in candidates:
                        n[i] = walk[i]
                        cost = sum(p * k / m for p, k in zip(price, n, strict=True))
                        history.append((step, i, n[i], cost))
                        if cost <= limit:
                            return Run(
                                n, history, weights, dense, others, seen, all_etas, walks, step + 1
                            )
                        if layerwise:
                            etas = etas_of(macs, n, m, sparsity, beta1, beta2)
    return Run(n, history, weights, dense, others, seen, all_etas, walks, max_steps)
