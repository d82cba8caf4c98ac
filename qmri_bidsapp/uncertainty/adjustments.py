"""Adjustments of estimates from simulated voxels: conformal intervals, and the effect of debiasing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.uncertainty.bins import MIN_PER_BIN, N_BINS, bins_of
from qmri_bidsapp.uncertainty.inverse import InverseReader
from qmri_bidsapp.uncertainty.simulation import Pairs
from qmri_bidsapp.uncertainty.space import Space

Array = npt.NDArray[np.float64]

#: Nominal coverage of conformal intervals.
COVERAGE = 0.95


def conformal_factors(space: Space, pairs: Pairs) -> dict[str, float]:
    """Return half the width of 95 % intervals, in stated standard deviations, of every quantity that has them.

    Errors of 95 % of the simulated voxels, and of new voxels of the same distribution, are within that many standard
    deviations (split conformal prediction, Lei et al. 2018, J Am Stat Assoc 113:1094), on average over their
    signal-to-noise ratios. There is no guarantee for voxels unlike the simulated ones.
    """
    found = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.abs(pairs.estimate.astype(np.float64) - pairs.truth) / pairs.std
    for parameter, column in zip(space.parameters, size.T, strict=True):
        known = np.sort(column[~np.isnan(column)])
        rank = math.ceil(COVERAGE * (len(known) + 1))
        if rank <= len(known) and np.isfinite(known[rank - 1]):
            found[parameter.name] = float(known[rank - 1])
    return found


def debiasing(space: Space, survey: Pairs, reader: InverseReader) -> dict[str, dict[str, tuple[float, float]]]:
    """Return the errors of every quantity but the amplitude, before and after subtraction of the expected bias.

    ``bias`` and ``std`` are root mean squares over bins of the truth of the mean and standard deviation of the error of
    the surveyed voxels, ``rmse`` that of all voxels; in the quantity's unit.
    """
    place = space.forward(survey.truth)
    known = survey.conditions[:, 1:] if survey.conditions.shape[1] > 1 else None
    reading = reader.read(survey.estimate, snr=np.exp(survey.conditions[:, 0]), covariates=known)
    usable = np.isfinite(reading.bias).all(axis=1)
    before = (survey.estimate.astype(np.float64) - survey.truth)[usable]
    result = {}
    for k, parameter in list(enumerate(space.parameters))[1:]:
        index = bins_of(place[usable][:, k : k + 1], N_BINS)[:, 0]
        pairs = [_spread(error, index) for error in (before[:, k], before[:, k] - reading.bias[usable, k])]
        result[parameter.name] = {name: (pairs[0][name], pairs[1][name]) for name in ("bias", "std", "rmse")}
    return result


def _spread(error: Array, index: npt.NDArray[np.intp]) -> dict[str, float]:
    """Return root mean squares of the errors: of their means and standard deviations over bins, and of all errors."""
    groups = [part for k in range(N_BINS) if len(part := error[index == k]) >= MIN_PER_BIN]
    weight = [len(part) for part in groups]
    square = [(part.mean() ** 2, part.var()) for part in groups] or [(0.0, 0.0)]
    bias, variance = np.average(square, axis=0, weights=weight or [1])
    return {
        "bias": float(np.sqrt(bias)),
        "std": float(np.sqrt(variance)),
        "rmse": float(np.sqrt(np.square(error).mean())),
    }
