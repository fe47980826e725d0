"""Whether two sets of pictures come from one source, by their features: a test of two samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_OF_TEST", "TwoSamples", "compare_samples"]

PERMUTATIONS = 999
LEAST_OF_TEST = 10
"""Pictures of each sample below which a test could find little."""


@dataclass(frozen=True)
class TwoSamples:
    """The result of the test.

    Attributes:
        mmd2: Squared maximum mean discrepancy, unbiased: about 0, and it may be below, where both are from one source.
        p: Share of random divisions of all pictures that are at least as different, in (0, 1].
        n: Pictures of the first sample.
        m: Of the second.
    """

    mmd2: float
    p: float
    n: int
    m: int


def compare_samples(first: npt.NDArray[Any], second: npt.NDArray[Any], *, seed: int = 0) -> TwoSamples:
    """Test whether two samples are of one distribution.

    Gretton et al. 2012 (*A Kernel Two-Sample Test*): maximum mean discrepancy with a Gaussian kernel as wide as the
    median distance, and a permutation test with 999 permutations, which is exact for samples of any size.

    Args:
        first: Features ``(N, D)``, at least two rows.
        second: ``(M, D)``, likewise.
        seed: Of the permutations.
    """
    rows = np.concatenate((first, second)).astype(np.float64)
    n, m, total = len(first), len(second), len(first) + len(second)
    norms = np.square(rows).sum(axis=1)
    squares = np.maximum(norms[:, None] + norms - 2.0 * rows @ rows.T, 0.0)
    width = float(np.median(squares[np.triu_indices(total, 1)]))
    kernel = np.exp(-squares / max(width, np.finfo(np.float64).tiny))
    np.fill_diagonal(kernel, 0.0)  # no row is compared with itself
    generator = np.random.default_rng(seed)
    chosen = np.zeros((1 + PERMUTATIONS, total))  # 1 where a row counts for the first sample
    chosen[0, :n] = 1.0
    for row in chosen[1:]:
        row[generator.permutation(total)[:n]] = 1.0
    inside = ((chosen @ kernel) * chosen).sum(axis=1)
    across = chosen @ kernel.sum(axis=1) - inside
    outside = kernel.sum() - inside - 2.0 * across
    values = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2.0 * across / (n * m)
    at_least = (values[1:] >= values[0] - 1e-12).sum()
    return TwoSamples(float(values[0]), float((1 + at_least) / (1 + PERMUTATIONS)), n, m)
