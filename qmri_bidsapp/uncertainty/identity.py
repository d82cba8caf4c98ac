"""The identity of a certificate: everything that its numbers depend on, from which its key is made."""

from __future__ import annotations

from typing import Any

from qmri_bidsapp import formats
from qmri_bidsapp.artifacts.weights import key_of
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator

#: Factor, up and down, by which a voxel's signal-to-noise ratio may differ from that of the series.
SPREAD = 4.0


def identity_of(
    estimator: Estimator,
    acquisition: Acquisition,
    *,
    prior: Prior,
    noise: Noise,
    n: int,
    seed: int,
    noise_is_known: bool,
    covariates_are_known: bool,
) -> dict[str, Any]:
    """Return everything that the certificate of a fitted estimator depends on, as plain data."""
    weights = None
    if isinstance(estimator, TrainedEstimator):
        weights = estimator.sha256_ or key_of(estimator.notes_)
    quantities = (*estimator.model.parameters, *estimator.model.derived)
    return {
        "format": formats.CERTIFICATE,
        "model": estimator.model.name,
        "bounds": {p.name: list(p.bounds) for p in quantities},
        "estimator": estimator.name,
        "weights": weights,
        "protocol": acquisition.to_dict(),
        "prior": prior.describe(),
        "noise": noise.to_dict(),
        "spread": SPREAD,
        "noise_is_known": noise_is_known,
        "covariates_are_known": covariates_are_known,
        "n": n,
        "seed": seed,
        "maps": formats.MAPS,
    }
