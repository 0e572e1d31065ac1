"""Effect size, and the smallest difference that a test set can detect."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALPHA, POWER = 0.05, 0.8
TOLERANCE = 1e-9  # scores that differ by no more than this are equal


def cohens_d(gain: NDArray[np.float64]) -> float:
    """Returns Cohen's d_z of paired gains [rows] with Hedges' correction: J mean / sd, J = 1 − 3 / (4 (n − 1) − 1).

    The unit is the standard deviation (n − 1 in the divisor) of the rows' gains, which are tuned minus base regardless
    of the good direction. 0 if all gains are equal or there is only one. d_z: Lakens 2013,
    doi:10.3389/fpsyg.2013.00863; J removes the upward bias of d for few rows: Hedges 1981,
    doi:10.3102/10769986006002107.
    """
    if len(gain) < 2 or np.ptp(gain) <= TOLERANCE:
        return 0.0
    return float((1 - 3 / (4 * (len(gain) - 1) - 1)) * gain.mean() / gain.std(ddof=1))


def minimum_detectable(error: float, groups: int) -> float | None:
    """Returns the minimum detectable difference at 5 % (two-sided) and 80 % power, in the units of `error`.

    (t₀.₉₇₅ + t₀.₈) × the standard error, with G − 1 degrees of freedom for G groups (Bloom 1995,
    doi:10.1177/0193841X9501900504). None for a single group or without any spread, because it is then unknown.
    """
    from scipy.stats import t

    if groups < 2 or error <= TOLERANCE:
        return None
    return float((t.ppf(1 - ALPHA / 2, groups - 1) + t.ppf(POWER, groups - 1)) * error)
