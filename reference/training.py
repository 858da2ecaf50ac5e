"""Masked training of one linear layer, written out: y = (E∘W) x, L = Σ (y − t)² / (2 batch), in
float64 loops over groups.

Equations: SR-STE (Zhou et al. 2021), LBC (Zhang et al. 2022, Eq. 5-12 and Alg. 1), SGD with
momentum and AdamW as in their papers.
"""

import itertools
import math

import numpy as np


def rowwise_mask(W, n, m):
    """Keep the n largest |w| of every m; among equals the first."""
    mask = np.zeros(W.shape, bool)
    for r in range(W.shape[0]):
        for g in range(0, W.shape[1], m):
            order = sorted(range(m), key=lambda i: (-abs(W[r, g + i]), i))
            for i in order[:n]:
                mask[r, g + i] = True
    return mask


def gradient(W, mask, x, t):
    """∂L/∂(E∘W)."""
    return (x @ (W * mask).T - t).T @ x / len(x)


class SGD:
    """v ← μ v + g + wd W, W ← W − lr v. `forget` zeroes the momenta of what a mask drops."""

    def __init__(self, lr, momentum=0.0, weight_decay=0.0):
        self.lr, self.momentum, self.weight_decay, self.v = lr, momentum, weight_decay, None

    def step(self, W, g):
        g = g + self.weight_decay * W
        self.v = g if self.v is None else self.momentum * self.v + g
        return W - self.lr * self.v

    def forget(self, mask):
        self.v = self.v * mask


class AdamW:
    """Adam with decoupled weight decay."""

    def __init__(self, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.a = self.b = 0.0
        self.t = 0

    def step(self, W, g):
        self.t += 1
        one, two = self.betas
        self.a = one * self.a + (1 - one) * g
        self.b = two * self.b + (1 - two) * g * g
        W = W * (1 - self.lr * self.weight_decay)
        a, b = self.a / (1 - one**self.t), self.b / (1 - two**self.t)
        return W - self.lr * a / (np.sqrt(b) + self.eps)

    def forget(self, mask):
        self.a, self.b = self.a * mask, self.b * mask


def train_fixed(W, batches, n, m, optimizer):
    """Mask once, train what is kept. Returns W and the masks of all steps."""
    mask = rowwise_mask(W, n, m)
    W = W * mask
    masks = [mask]
    for x, t in batches:
        W = optimizer.step(W, mask * gradient(W, mask, x, t)) * mask
        masks.append(mask)
    return W, masks


def train_ste(
    W, batches, n, m, optimizer, decay=0.0, decoupled=False, update_every=1, freeze_after=math.inf
):
    """STE, and with a decay SR-STE: W ← W − lr (g + λ (1 − E) W), the decay in the gradient or
    beside it.
    """
    mask = rowwise_mask(W, n, m)
    masks = [mask]
    for step, (x, t) in enumerate(batches, 1):
        g = gradient(W, mask, x, t)
        if decoupled:
            W = W - optimizer.lr * decay * ~mask * W
        else:
            g = g + decay * ~mask * W
        W = optimizer.step(W, g)
        if step % update_every == 0 and step <= freeze_after:
            mask = rowwise_mask(W, n, m)
        masks.append(mask)
    return W, masks


def removed(count, t, start, end, power=3):
    """Eq. 6, summed up, its bracket rounded up."""
    if t >= end:
        return count - 1
    if t <= start:
        return 0
    exact = (count - 1) * (1 - (1 - (t - start) / (end - start)) ** power)
    return math.ceil(exact - 1e-9)


def train_lbc(
    W, batches, n, m, optimizer, t_i, t_f, criterion="learned", momentum=0.9, update_every=1
):
    """Alg. 1, with what is alive in a set of its own: removal is for good."""
    sets = list(itertools.combinations(range(m), n))
    groups = [(r, g) for r in range(W.shape[0]) for g in range(0, W.shape[1], m)]
    alive = {group: list(range(len(sets))) for group in groups}
    S = {group: [1.0] * len(sets) for group in groups}
    V = {group: [0.0] * len(sets) for group in groups}
    seen, ever = np.zeros(W.shape), np.zeros(W.shape)
    mask = np.ones(W.shape, bool)
    masks = [mask]
    for step, (x, t) in enumerate(batches, 1):
        g = gradient(W, mask, x, t)
        worth = W * g
        seen += np.abs(worth * mask)
        ever += np.abs(worth * mask)
        for r, c in groups:
            for j in alive[r, c]:
                V[r, c][j] = momentum * V[r, c][j] + sum(worth[r, c + i] for i in sets[j])
                S[r, c][j] -= optimizer.lr * V[r, c][j]
        W = optimizer.step(W, mask * g)
        if step <= t_f and (step == t_f or step % update_every == 0):
            gone = removed(len(sets), step, t_i, t_f)
            before = len(sets) - len(alive[groups[0]])
            for r, c in groups if gone > before else []:
                known = (seen if criterion == "gradient" else ever)[r, c : c + m].any()
                source = seen if criterion == "gradient" and known else np.abs(W)

                def score(j, r=r, c=c, source=source, known=known):
                    if not known:  # no gradient has said anything
                        return sum(source[r, c + i] for i in sets[j])
                    if criterion == "learned":
                        return S[r, c][j]
                    if criterion == "inverse":
                        return -S[r, c][j]
                    return sum(source[r, c + i] for i in sets[j])

                # Of equal scores the later candidate goes first.
                kept = sorted(alive[r, c], key=lambda j: (-score(j), j))[: len(sets) - gone]
                alive[r, c] = sorted(kept)
            if gone > before:
                seen[:] = 0
                mask = np.zeros(W.shape, bool)
                for r, c in groups:
                    for j in alive[r, c]:
                        for i in sets[j]:
                            mask[r, c + i] = True
                W = W * mask
                optimizer.forget(mask)
        masks.append(mask)
    return W, masks
