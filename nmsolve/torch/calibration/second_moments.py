"""Second moments of a layer's inputs, and of those that the dense model gives it, gathered at the
speed of a float32 matrix product.

Products of up to `_ROWS` samples are summed in float32, and these sums in float64: an entry of XᵀX
is off by at most `_ROWS` · 2⁻²⁴ of √((XᵀX)_ii (XᵀX)_jj) whatever the number of samples, and by some
10⁻⁶ of it as a rule, as long as columns are less than 15 orders of magnitude apart. Inputs of
float64, inputs whose squares leave the range of float32, and everything where that is asked for are
multiplied in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Samples of a piece.
_ROWS = 4096
#: A symmetric product is done in so many strips, of so many columns at least.
_STRIPS, _WIDTH = 6, 128
#: Magnitudes between which squares, and sums of `_ROWS` of them, are normal float32 numbers.
_SMALLEST, _LARGEST = 1e-15, 1e15


@dataclass(frozen=True, slots=True)
class Moved:
    """Second moments about points of the caller's choice, float64.

    Attributes
    ----------
    gram, crossed, dense : (parts, cols, cols) Tensor
        Σ x xᵀ, Σ x' xᵀ and Σ x' x'ᵀ; the same tensor where x' is x everywhere.
    """

    gram: Tensor
    crossed: Tensor
    dense: Tensor

    @property
    def towards_dense(self) -> Tensor:
        """Σ (x' − x) xᵀ."""
        return self.crossed - self.gram


@dataclass(slots=True, kw_only=True)
class SecondMoments:
    """Sums over samples, in float64, by part of the weight: x are inputs, and x' are those of the
    dense model for the same samples.

    Attributes
    ----------
    count : (parts,) Tensor
        Samples.
    total, dense_total : (parts, cols) Tensor
        Σ x − r and Σ x' − r.
    gram, crossed, dense : (parts, cols, cols) Tensor
        Σ (x − r)(x − r)ᵀ, Σ (x' − r)(x − r)ᵀ, Σ (x' − r)(x' − r)ᵀ. The same tensor as long as x'
        is x everywhere. Complete after `finish`.
    reference : (parts, cols) Tensor
        r: where moments about the mean are asked for, a point near it, so that they are no
        differences of large numbers; zero elsewhere.
    centred, precise : bool
        Moments about the mean will be asked for; multiply in float64.
    """

    count: Tensor
    total: Tensor
    dense_total: Tensor
    gram: Tensor
    crossed: Tensor
    dense: Tensor
    reference: Tensor
    centred: bool
    precise: bool
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
    ) -> SecondMoments:
        """Return sums of no samples.

        Parameters
        ----------
        own : bool
            Whether x' will be x everywhere.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(parts, *shape, dtype=torch.float64, device=device)

        gram = zeros(cols, cols)
        return cls(
            count=zeros(),
            total=zeros(cols),
            dense_total=zeros(cols),
            gram=gram,
            crossed=gram if own else zeros(cols, cols),
            dense=gram if own else zeros(cols, cols),
            reference=zeros(cols),
            centred=centred,
            precise=precise,
        )

    def add(self, part: int, inputs: Tensor, dense: Tensor) -> None:
        """Add samples of a part: x and x', (samples, cols) each, or the same tensor twice."""
        own = dense is inputs
        for x, of_dense in zip(inputs.split(_ROWS), dense.split(_ROWS), strict=True):
            if len(x):  # a split of no rows gives one
                self._add(part, x, x if own else of_dense)

    def _add(self, part: int, x: Tensor, of_dense: Tensor) -> None:
        own = of_dense is x
        wide = self.precise or any(_needs_float64(one) for one in ((x,) if own else (x, of_dense)))
        given, kind = x.dtype, torch.float64 if wide else torch.float32
        x, other = x.to(kind), of_dense.to(kind)
        if self.centred:
            if not self.count[part]:
                # As the inputs' dtype has it, so that it is what is taken off in each piece.
                self.reference[part] = x.mean(0).to(torch.promote_types(given, torch.float32))
            shift = self.reference[part].to(kind)
            x, other = x - shift, other - shift
        other = x if own else other
        self.count[part] += len(x)
        total = x.sum(0, dtype=torch.float64)
        self.total[part] += total
        self.dense_total[part] += total if own else other.sum(0, dtype=torch.float64)
        factors = [(x, x, True)]
        if self.crossed is not self.gram:
            factors += [(other, x, False), (other, other, True)]
        sums = self._sums(part)
        if not wide:
            if self._rows.get(part, 0) + len(x) > _ROWS:
                self._settle(part)
            if part not in self._pending:
                self._pending[part] = [torch.zeros_like(one, dtype=kind) for one in sums]
            sums = self._pending[part]
            self._rows[part] = self._rows.get(part, 0) + len(x)
        for one, (left, right, symmetric) in zip(sums, factors, strict=True):
            _add_product(one, left, right, symmetric)

    def _sums(self, part: int) -> list[Tensor]:
        sums = (self.gram, self.crossed, self.dense)
        return [one[part] for one in (sums[:1] if self.crossed is self.gram else sums)]

    def _settle(self, part: int) -> None:
        """Add up what is pending."""
        for sums, product in zip(self._sums(part), self._pending.pop(part, []), strict=False):
            sums += product
        self._rows[part] = 0

    def finish(self) -> None:
        """Complete the sums."""
        for part in list(self._pending):
            self._settle(part)
        symmetric = (self.gram,) if self.crossed is self.gram else (self.gram, self.dense)
        for sums in symmetric:
            for part in sums:
                _mirror(part)

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Means of x and of x', (parts, cols) each."""
        count = self.count.clamp(min=1).unsqueeze(1)
        return self.reference + self.total / count, self.reference + self.dense_total / count

    @property
    def squares(self) -> Tensor:
        """Σ x² of each input, (parts, cols)."""
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        if not self.centred:
            return diagonal
        count = self.count.unsqueeze(1)
        return diagonal + (2 * self.total + count * self.reference) * self.reference

    def totals(self, points: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return Σ x and Σ x' relative to other points than r, as for `about`."""
        count = self.count.unsqueeze(1)
        return (
            self.total + count * (self.reference - points[0]),
            self.dense_total + count * (self.reference - points[1]),
        )

    @property
    def in_range(self) -> bool:
        """True where Σ x² and Σ x'² are finite."""
        sums = zip((self.gram, self.dense), self.means, strict=True)
        return all(
            bool(torch.isfinite(one.diagonal(dim1=1, dim2=2)).all())
            and bool(torch.isfinite(self.count.unsqueeze(1) * mean.square()).all())
            for one, mean in sums
        )

    def about(self, points: tuple[Tensor, Tensor] | None) -> Moved:
        """Return the sums of x and x' taken relative to other points than r.

        Parameters
        ----------
        points : pair of (parts, cols) Tensors, or None
            For x and for x': the means, where a bias is fitted along. None: zero.
        """
        if points is None and not self.centred:
            return Moved(self.gram, self.crossed, self.dense)
        zero = torch.zeros_like(self.reference)
        first, second = (zero, zero) if points is None else points
        a, b = self.reference - first, self.reference - second

        def moved(sums: Tensor, left: Tensor, right: Tensor, of: Tensor, by: Tensor) -> Tensor:
            """Σ (u' + left)(u + right)ᵀ from Σ u' uᵀ, Σ u' (of) and Σ u (by)."""
            both = self.count.view(-1, 1, 1) * left.unsqueeze(2)
            return (
                sums
                + of.unsqueeze(2) * right.unsqueeze(1)
                + left.unsqueeze(2) * by.unsqueeze(1)
                + both * right.unsqueeze(1)
            )

        gram = moved(self.gram, a, a, self.total, self.total)
        if self.crossed is self.gram:
            return Moved(gram, gram, gram)
        return Moved(
            gram,
            moved(self.crossed, b, a, self.dense_total, self.total),
            moved(self.dense, b, b, self.dense_total, self.dense_total),
        )


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
