"""Means and covariances as sums that can be merged: over batches, over workers, over hospitals.

Everything is float64 and central (Chan, Golub & LeVeque 1983): parts carry sums about their own mean, and merging moves
them to the joint mean, so that a large offset of the data costs no digits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums of rows about their mean.

    Args:
        count: number of rows.
        mean: of the rows.
        scatter: ``sum (x - mean)(x - mean)^T``.
        cubic: ``sum |x - mean|^2 (x - mean)``; needed to merge ``quartic``.
        quartic: ``sum |x - mean|^4``; what Ledoit-Wolf shrinkage needs beside the scatter.
    """

    count: int
    mean: Float64[Tensor, " d"]
    scatter: Float64[Tensor, "d d"]
    cubic: Float64[Tensor, " d"]
    quartic: Float64[Tensor, ""]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"]) -> "Moments":
        """The sums of one part (which may have no row)."""
        x = rows.double()
        mean = x.mean(dim=0) if len(x) else x.new_zeros(x.shape[1])
        x = x - mean
        norm = x.square().sum(dim=1)
        return cls(len(x), mean, x.T @ x, norm @ x, norm.square().sum())

    def add(self, rows: Float[Tensor, "n d"]) -> "Moments":
        """The sums with further rows."""
        return self.merge(Moments.of(rows))

    def merge(self, other: "Moments") -> "Moments":
        """The sums of both parts together; exact, in any order."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        shift = delta * (other.count / count)
        one, two = self._about(shift), other._about(shift - delta)
        return Moments(count, self.mean + shift, one.scatter + two.scatter, one.cubic + two.cubic, one.quartic + two.quartic)

    def _about(self, shift: Float64[Tensor, " d"]) -> "Moments":
        """The same rows about ``mean + shift`` instead of their mean."""
        far, trace, turned = shift @ shift, self.scatter.trace(), self.scatter @ shift
        return Moments(
            self.count,
            self.mean + shift,
            self.scatter + self.count * torch.outer(shift, shift),
            self.cubic - trace * shift - 2 * turned - self.count * far * shift,
            self.quartic - 4 * (self.cubic @ shift) + 4 * (shift @ turned) + 2 * far * trace + self.count * far.square(),
        )


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Sums of labelled rows about the mean of their class, with one scatter tied over the classes.

    Memory is ``K*D + D*D`` and does not grow with the number of rows.

    Args:
        labels: labels seen, ascending; any integers.
        counts: rows per class.
        means: of each class.
        within: ``sum (x - mean of its class)(x - mean of its class)^T``; a class with one row adds nothing.
    """

    labels: Int64[Tensor, " k"]
    counts: Float64[Tensor, " k"]
    means: Float64[Tensor, "k d"]
    within: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> "ClassMoments":
        """The sums of one part (which may have no row)."""
        x = rows.double()
        seen, where = torch.unique(labels, return_inverse=True)
        counts = torch.bincount(where, minlength=len(seen)).double()
        means = x.new_zeros(len(seen), x.shape[1]).index_add_(0, where, x) / counts[:, None]
        x = x - means[where]
        return cls(seen, counts, means, x.T @ x)

    def add(self, rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> "ClassMoments":
        """The sums with further rows."""
        return self.merge(ClassMoments.of(rows, labels))

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """The sums of both parts together; exact, in any order, whatever classes each has seen."""
        labels = torch.unique(torch.cat([self.labels, other.labels]))
        n, m = self._spread(labels)
        n_other, m_other = other._spread(labels)
        counts, delta = n + n_other, m_other - m
        both = delta[(n > 0) & (n_other > 0)] * (n * n_other / counts).sqrt()[(n > 0) & (n_other > 0)][:, None]
        return ClassMoments(labels, counts, m + delta * (n_other / counts)[:, None], self.within + other.within + both.T @ both)

    def _spread(self, labels: Int64[Tensor, " k"]) -> tuple[Float64[Tensor, " k"], Float64[Tensor, "k d"]]:
        """Counts and means on a longer list of labels; zero where a label was not seen."""
        at = torch.searchsorted(labels, self.labels)
        counts, means = self.counts.new_zeros(len(labels)), self.means.new_zeros(len(labels), self.means.shape[1])
        counts[at], means[at] = self.counts, self.means
        return counts, means

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean of all rows, whatever their class."""
        return (self.counts @ self.means) / self.counts.sum()

    @property
    def total(self) -> Float64[Tensor, "d d"]:
        """Scatter of all rows about their common mean: within the classes plus between them."""
        between = (self.means - self.mean) * self.counts.sqrt()[:, None]
        return self.within + between.T @ between

    def residuals(self, rows: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float64[Tensor, "n d"]:
        """Rows minus the mean of their class; every label must have been seen."""
        return rows.double() - self.means[torch.searchsorted(self.labels, labels)]


def quartic(residuals: Float64[Tensor, "n d"]) -> Float64[Tensor, ""]:
    """``sum |x|^4`` of centred rows.

    For tied classes this is a short second pass, since ``sum |x - mean of its class|^4`` cannot be merged without one
    scatter per class (``K*D*D`` numbers); given the means, parts simply add up.
    """
    return residuals.square().sum(dim=1).square().sum()
