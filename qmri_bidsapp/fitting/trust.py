"""Judge a fit by its certificate: expected bias, range of the truth, and flags of voxels unlike the simulated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.fitting.evidence import Evidence
from qmri_bidsapp.fitting.noise import smooth
from qmri_bidsapp.images.volumes import fill
from qmri_bidsapp.uncertainty.certificate import Certificate
from qmri_bidsapp.uncertainty.inverse import Reading, Trust, normal_range
from qmri_bidsapp.uncertainty.ood import Flags, Reason
from qmri_bidsapp.uncertainty.ood_measures import Measures

Values = npt.NDArray[np.floating]

#: Voxels that are read and flagged at once, so that memory stays bounded.
CHUNK_SIZE = 131_072


@dataclass(frozen=True)
class Verdict:
    """What a certificate says of the voxels of a fit.

    Attributes
    ----------
    quantities : tuple of str
        Names of the columns of `reading`, see `uncertainty.space.Space`.
    reading : Reading
        Expected bias and range of the truth.
    flags : Flags
        Which voxels are unlike the simulated ones, and why.
    noise_factor : float
        Median ratio of the noise that flags are based on to the noise that was measured.
    interval : tuple of ndarray
        (n_voxels, n_quantities) limits of the conformal 95 % interval; NaN where the voxel is flagged or unlike the
        simulated ones: there the interval holds nothing.
    """

    quantities: tuple[str, ...]
    reading: Reading
    flags: Flags
    noise_factor: float
    interval: tuple[Values, Values]


def judge(
    certificate: Certificate,
    estimate: Values,
    std: Values,
    evidence: Evidence,
    mask: npt.NDArray[np.bool_],
    *,
    covariates: Values | None = None,
) -> Verdict:
    """Judge the fit of a series.

    Parameters
    ----------
    certificate : Certificate
        Of the estimator, for the protocol and noise of the series.
    estimate, std : ndarray
        (n_voxels, n_quantities) of the quantities of the certificate's space, see `quantities_of`.
    evidence : Evidence
        Of the same voxels.
    mask : ndarray
        (x, y, z) bool: where they lie.
    covariates : ndarray, optional
        (n_voxels, n_covariates), as the estimator was given them.
    """

    def over_neighbours(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return smooth(fill(values, mask, np.nan))[mask]

    known = covariates if certificate.identity["covariates_are_known"] else None
    reading = read_truth(certificate, estimate, std, evidence.voxel_snr, covariates=known)
    if evidence.error_factor is not None:
        reading = _of_denoised(certificate, reading, estimate, std, evidence.error_factor[:, certificate.space.columns])
    flags, noise_factor = flag_voxels(
        certificate,
        evidence.measures,
        evidence.noise_std,
        over_neighbours=over_neighbours,
        floor_removed=evidence.floor_removed,
    )
    names = tuple(p.name for p in certificate.space.parameters)
    half = std * [certificate.conformal.get(name, np.nan) for name in names]
    half[(flags.reason != Reason.TYPICAL) | (reading.trust == Trust.UNLIKE)] = np.nan
    return Verdict(names, reading, flags, noise_factor, (estimate - half, estimate + half))


def quantities_of(certificate: Certificate, maps: ParameterMaps) -> tuple[Values, Values]:
    """Return estimate and standard deviation, (n_voxels, n_quantities), of the quantities of a certificate's space."""
    columns = certificate.space.columns
    return maps.estimate[:, columns], maps.std[:, columns]


def read_truth(
    certificate: Certificate, estimate: Values, std: Values, snr: Values, *, covariates: Values | None = None
) -> Reading:
    """Return expected bias and range of the truth; arguments as for `judge`, `snr` is (n_voxels,)."""
    parts = [
        certificate.reader.read(
            estimate[part], std[part], snr=snr[part], covariates=None if covariates is None else covariates[part]
        )
        for part in _parts(len(estimate))
    ]
    names = ("bias", "lower", "upper", "trust", "is_wide")
    return Reading(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _of_denoised(certificate: Certificate, reading: Reading, estimate: Values, std: Values, factor: Values) -> Reading:
    """Return the reading of a denoised series, whose errors are not those of the simulated voxels.

    Ranges are those of normal errors of the standard deviations, which a replicate gave; where there is none, on a
    physical limit, they stay. The expected bias is proportional to the variance, to first order.
    """
    known = np.isfinite(std) & np.isfinite(reading.lower)
    low, high = normal_range(certificate.space, estimate, std)
    return replace(
        reading,
        bias=(reading.bias * factor**2).astype(np.float32),
        lower=np.where(known, low, reading.lower).astype(np.float32),
        upper=np.where(known, high, reading.upper).astype(np.float32),
    )


def flag_voxels(
    certificate: Certificate,
    measures: Measures,
    noise_std: Values,
    *,
    over_neighbours: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None,
    floor_removed: bool = False,
) -> tuple[Flags, float]:
    """Compare voxels with the simulated ones.

    Parameters
    ----------
    certificate : Certificate
    measures : Measures
    noise_std : ndarray
        (n_voxels,) measured noise of one raw measurement.
    over_neighbours : callable, optional
        Returns the mean of (n_voxels,) values over each voxel's neighbourhood: the noise is then lowered where the
        scatter over directions shows that there is less. None for voxels that form no image.
    floor_removed : bool
        Whether the series was denoised and its noise floor removed: its scatter says little of the noise that is left
        in estimates, and less scatter than expected is no fault.

    Returns
    -------
    flags : Flags
    noise_factor : float
        Median ratio of the noise in use to `noise_std`.
    """
    known = certificate.out_of_distribution
    lowered = over_neighbours is not None and not floor_removed
    noise = known.noise_in_use(measures, noise_std, over_neighbours) if lowered else noise_std  # type: ignore[arg-type]
    flags = [
        known.flag(measures.part(part), noise[part], less_is_fine=floor_removed) for part in _parts(len(noise_std))
    ]
    ratio = (noise / noise_std)[np.isfinite(noise) & (noise_std > 0)]
    return Flags.join(flags), float(np.median(ratio)) if ratio.size else 1.0


def _parts(n_voxels: int) -> list[slice]:
    return [slice(i, i + CHUNK_SIZE) for i in range(0, n_voxels, CHUNK_SIZE)]
