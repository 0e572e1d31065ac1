"""How large a difference is beside its spread, and how small a one this test set would have shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ALPHA, POWER = 0.05, 0.8
SAME = 1e-9  # scores that differ by no more are the same


def standardised(gain: NDArray[np.float64]) -> float:
    """Cohen's d_z of paired gains [rows] with Hedges' correction: J mean / sd, J = 1 − 3 / (4 (n − 1) − 1).

    In standard deviations (n − 1 in the divisor) of the rows' gains, tuned minus base whichever side is good; 0 when
    the gains do not differ or there is only one. d_z: Lakens 2013, doi:10.3389/fpsyg.2013.00863; J: Hedges 1981,
    doi:10.3102/10769986006002107, which takes out d's upward bias for few rows.
    """
    if len(gain) < 2 or np.ptp(gain) <= SAME:
        return 0.0
    return float((1 - 3 / (4 * (len(gain) - 1) - 1)) * gain.mean() / gain.std(ddof=1))


def noticeable(error: float, groups: int) -> float | None:
    """The smallest true difference that is shown at 5 % (two-sided) with 80 % power, in the units of `error`.

    (t₀.₉₇₅ + t₀.₈) × the standard error, both of G − 1 degrees of freedom for G groups (Bloom 1995,
    doi:10.1177/0193841X9501900504). None for a single group, and where no spread was seen: nothing is known then.
    """
    from scipy.stats import t

    if groups < 2 or error <= SAME:
        return None
    return float((t.ppf(1 - ALPHA / 2, groups - 1) + t.ppf(POWER, groups - 1)) * error)
