"""Second moments of a layer's inputs, and of how those that the dense model gives it differ from
them, gathered at the speed of a float32 matrix product.

Products of up to `_ROWS` samples are summed in float32, and these sums in float64: an entry of XᵀX
is off by at most `_ROWS` · 2⁻²⁴ of √((XᵀX)_ii (XᵀX)_jj) whatever the number of samples, and by some
10⁻⁶ of it as a rule, as long as columns are less than 15 orders of magnitude apart. Inputs of
float64, inputs whose squares leave the range of float32, and everything where that is asked for are
multiplied in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

#: Samples of a piece.
_ROWS = 4096
#: A symmetric product is done in so many strips, of so many columns at least.
_STRIPS, _WIDTH = 6, 128
#: Magnitudes between which squares, and sums of `_ROWS` of them, are normal float32 numbers.
_SMALLEST, _LARGEST = 1e-15, 1e15


class Points(NamedTuple):
    """Where moments are taken about: for inputs x and x' (parts, cols), and for what is gathered of
    their difference, (parts, cols), or (parts, rows) where that is by outputs.
    """

    given: Tensor
    of_dense: Tensor
    apart: Tensor


@dataclass(frozen=True, slots=True)
class Moved:
    """Second moments about points of the caller's choice.

    Attributes
    ----------
    gram : (parts, cols, cols) Tensor
        Σ x xᵀ.
    between, gap : Tensor or None
        As in `SecondMoments`.
    """

    gram: Tensor
    between: Tensor | None
    gap: Tensor | None


@dataclass(slots=True, kw_only=True)
class SecondMoments:
    """Sums over samples, in float64, by part of the weight: x are inputs, x' are those of the dense
    model for the same samples, and z = x' − x; or z = W (x' − x), by outputs, which takes fewer and
    smaller products where W has fewer rows than columns.

    Attributes
    ----------
    count : (parts,) Tensor
        Samples.
    total, dense_total : (parts, cols) Tensor
        Σ x − r and Σ x' − r.
    apart : (parts, cols or rows) Tensor
        Σ z.
    gram : (parts, cols, cols) Tensor
        Σ (x − r)(x − r)ᵀ. Complete after `finish`.
    between : (parts, cols or rows, cols) Tensor or None
        Σ z (x − r)ᵀ; None where x' is x everywhere.
    gap : (parts, cols, cols) or (parts, rows) Tensor, or None
        Σ z zᵀ, or Σ z² of each output; None where x' is x everywhere. Complete after `finish`.
    reference : (parts, cols) Tensor
        r: where moments about the mean are asked for, a point near it, so that they are no
        differences of large numbers; zero elsewhere.
    centred, precise : bool
        Moments about the mean will be asked for; multiply in float64.
    weight : (parts, rows, cols) Tensor or None
        W; None where z is x' − x, and after `finish`.
    """

    count: Tensor
    total: Tensor
    dense_total: Tensor
    apart: Tensor
    gram: Tensor
    between: Tensor | None
    gap: Tensor | None
    reference: Tensor
    centred: bool
    precise: bool
    weight: Tensor | None
    #: Products in float32 that are not in the sums yet, by part, and of how many samples.
    _pending: dict[int, list[Tensor]] = field(default_factory=dict)
    _rows: dict[int, int] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        parts: int,
        cols: int,
        device: torch.device,
        *,
        own: bool,
        centred: bool = True,
        precise: bool = False,
        weight: Tensor | None = None,
    ) -> SecondMoments:
        """Return sums of no samples.

        Parameters
        ----------
        own : bool
            Whether x' will be x everywhere.
        weight : (parts, rows, cols) Tensor, optional
            W, to gather by outputs; it must not change until `finish`.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(parts, *shape, dtype=torch.float64, device=device)

        weight = None if own else weight
        width = cols if weight is None else weight.shape[1]
        return cls(
            count=zeros(),
            total=zeros(cols),
            dense_total=zeros(cols),
            apart=zeros(width),
            gram=zeros(cols, cols),
            between=None if own else zeros(width, cols),
            gap=None if own else zeros(width) if weight is not None else zeros(width, width),
            reference=zeros(cols),
            centred=centred,
            precise=precise,
            weight=weight,
        )

    @property
    def by_outputs(self) -> bool:
        """True if these are one weight's alone."""
        return self.gap is not None and self.gap.ndim == 2

    def add(self, part: int, inputs: Tensor, dense: Tensor) -> None:
        """Add samples of a part: x and x', (samples, cols) each, or the same tensor twice."""
        own = dense is inputs
        for x, of_dense in zip(inputs.split(_ROWS), dense.split(_ROWS), strict=True):
            if len(x):  # a split of no rows gives one
                self._add(part, x, x if own else of_dense)

    def _add(self, part: int, inputs: Tensor, of_dense: Tensor) -> None:
        x = inputs
        kind = torch.float64 if self.precise or _needs_float64(x) else torch.float32
        u = z = None
        if of_dense is not x:
            u, z = self._differences(part, x, of_dense, kind)
            if kind == torch.float32 and (_needs_float64(u) or _needs_float64(z)):
                kind = torch.float64
                u, z = self._differences(part, x, of_dense, kind)
        given, x = x.dtype, x.to(kind)
        if self.centred:
            if not self.count[part]:
                # As the inputs' dtype has it, so that it is what is taken off in each piece.
                self.reference[part] = x.mean(0).to(torch.promote_types(given, torch.float32))
            x = x - self.reference[part].to(kind)
            if kind == torch.float32 and _needs_float64(x):
                wide = inputs.double()  # they are far from where the first ones were
                self._add(part, wide, wide if of_dense is inputs else of_dense.double())
                return
        self.count[part] += len(x)
        total = x.sum(0, dtype=torch.float64)
        self.total[part] += total
        self.dense_total[part] += total
        factors = [(x, x, True)]
        if u is not None and z is not None and bool(u.any()):
            self.dense_total[part] += u.sum(0, dtype=torch.float64)
            self.apart[part] += z.sum(0, dtype=torch.float64)
            factors.append((z, x, False))
            if self.by_outputs:
                assert self.gap is not None
                self.gap[part] += z.square().sum(0, dtype=torch.float64)
            else:
                factors.append((z, z, True))
        sums = self._sums(part)
        if kind == torch.float32:
            if self._rows.get(part, 0) + len(x) > _ROWS:
                self._settle(part)
            if part not in self._pending:
                self._pending[part] = [torch.zeros_like(one, dtype=kind) for one in sums]
            sums = self._pending[part]
            self._rows[part] = self._rows.get(part, 0) + len(x)
        for one, (left, right, symmetric) in zip(sums, factors, strict=False):
            _add_product(one, left, right, symmetric)

    def _differences(
        self, part: int, x: Tensor, of_dense: Tensor, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return x' − x and z."""
        u = of_dense.to(kind) - x.to(kind)
        return u, u if self.weight is None else u @ self.weight[part].T.to(kind)

    def _sums(self, part: int) -> list[Tensor]:
        """Those that are products."""
        sums = (self.gram, self.between, None if self.by_outputs else self.gap)
        return [one[part] for one in sums if one is not None]

    def _settle(self, part: int) -> None:
        """Add up what is pending."""
        pending = self._pending.pop(part, None)
        if pending is not None:
            for sums, product in zip(self._sums(part), pending, strict=True):
                sums += product
        self._rows[part] = 0

    def finish(self) -> None:
        """Complete the sums."""
        for part in list(self._pending):
            self._settle(part)
        for sums in (self.gram, None if self.by_outputs else self.gap):
            for part in [] if sums is None else sums:
                _mirror(part)
        self.weight = None

    @property
    def means(self) -> Points:
        """Of x, x' and z."""
        count = self.count.clamp(min=1).unsqueeze(1)
        return Points(
            self.reference + self.total / count,
            self.reference + self.dense_total / count,
            self.apart / count,
        )

    @property
    def squares(self) -> Tensor:
        """Σ x² of each input, (parts, cols)."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        if not self.centred:
            return diagonal
        count = self.count.unsqueeze(1)
        return diagonal + (2 * self.total + count * self.reference) * self.reference

    def in_range(self, kind: torch.dtype, weight: float = 1.0) -> bool:
        """Return whether Σ x², Σ x'² and Σ z² are finite; for float32, whether they and their
        products with the square of a weight are far from the ends of its range.
        """
        squares = [self.gram.diagonal(dim1=1, dim2=2)]
        if self.gap is not None:
            squares.append(self.gap if self.by_outputs else self.gap.diagonal(dim1=1, dim2=2))
        count = self.count.unsqueeze(1)
        squares += [count * mean.square() for mean in self.means]
        largest = torch.stack([one.max() for one in squares]).max()
        if kind == torch.float64:
            return bool(torch.isfinite(largest))
        ends = float(largest), float(largest) * weight**2
        return not all(ends) or all(_SMALLEST**2 < one < _LARGEST**2 for one in ends)

    def about(self, points: Points | None, kind: torch.dtype = torch.float64) -> Moved:
        """Return the sums of x, x' and z taken relative to other points than r, r and zero.

        Parameters
        ----------
        points : Points or None
            The means, where a bias is fitted along. None: zeros.
        kind : torch.dtype
            Of the result.
        """
        there = torch.zeros_like(self.reference) if points is None else points.given
        right = self.reference - there
        gram = self._moved(self.gram, (self.total, right), (self.total, right), kind)
        if self.between is None or self.gap is None:
            return Moved(gram, None, None)
        left = torch.zeros_like(self.apart) if points is None else -points.apart
        between = self._moved(self.between, (self.apart, left), (self.total, right), kind)
        if self.by_outputs:
            count = self.count.unsqueeze(1)
            gap = (self.gap + (2 * self.apart + count * left) * left).to(kind)
        else:
            gap = self._moved(self.gap, (self.apart, left), (self.apart, left), kind)
        return Moved(gram, between, gap)

    def _moved(
        self,
        sums: Tensor,
        first: tuple[Tensor, Tensor],
        second: tuple[Tensor, Tensor],
        kind: torch.dtype,
    ) -> Tensor:
        """Σ (v + left)(w + right)ᵀ from Σ v wᵀ, (Σ v, left) and (Σ w, right)."""
        (of, left), (by, right) = first, second
        if not (bool(left.any()) or bool(right.any())):
            return sums.to(kind)
        # strip by strip, without other tensors of this size in float64
        found = torch.empty_like(sums, dtype=kind)
        other = by + self.count.unsqueeze(1) * right
        for rows in (slice(at, at + _WIDTH) for at in range(0, sums.shape[1], _WIDTH)):
            moved = of[:, rows, None] * right[:, None] + left[:, rows, None] * other[:, None]
            found[:, rows] = moved.add_(sums[:, rows])
        return found


def _mirror(sums: Tensor) -> None:
    """Put what is above the diagonal below it too, in place."""
    cols = len(sums)
    for start in range(0, cols, _WIDTH):
        stop = min(start + _WIDTH, cols)
        block = sums[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        sums[stop:, start:stop] = sums[start:stop, stop:].T


def _needs_float64(x: Tensor) -> bool:
    """Return whether squares of these leave the range of float32."""
    if x.dtype == torch.float64:
        return True
    low, high = torch.aminmax(x)
    largest = max(-float(low), float(high))
    return largest > 0 and not _SMALLEST < largest < _LARGEST


def _add_product(sums: Tensor, left: Tensor, right: Tensor, symmetric: bool) -> None:
    """Add leftᵀ right; of symmetric sums, the blocks on the diagonal and above it."""
    if not symmetric:
        sums.addmm_(left.T, right)
        return
    cols = left.shape[1]
    width = max(_WIDTH, -(-cols // _STRIPS))
    for start in range(0, cols, width):
        stop = start + width
        sums[start:stop, start:].addmm_(left[:, start:stop].T, left[:, start:])
