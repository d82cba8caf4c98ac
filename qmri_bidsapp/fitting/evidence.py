"""What is recorded of the voxels of a series while they are fitted, to judge the fit afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import ParameterMaps
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.fitting.noise import SeriesNoise
from qmri_bidsapp.fitting.noise_level import NoiseLevel
from qmri_bidsapp.uncertainty.ood_measures import Measures, Meter


@dataclass(frozen=True)
class Evidence:
    """Noise and measures of the voxels of a series.

    Attributes
    ----------
    noise_std : ndarray
        (n_voxels,) float64, standard deviation of the noise of one raw measurement, in the unit of the images: that
        which the fit was given, elsewhere that of the residuals of the series. NaN where it is unknown.
    snr : float
        Median ratio of the reference signal to `noise_std`; 0 where the noise is unknown.
    noise_is_given : bool
        Whether the noise of most voxels was known before the fit.
    floor_removed : bool
        Whether preprocessing removed the noise floor of the magnitudes.
    measures : Measures
        Of every voxel.
    error_factor : ndarray or None
        (n_voxels, n_parameters) ratio of the errors of a fit to a denoised series to those that the noise alone would
        make, see `fitting.replicate`; None where there was no denoising.
    """

    noise_std: npt.NDArray[np.float64]
    snr: float
    noise_is_given: bool
    floor_removed: bool
    measures: Measures
    error_factor: npt.NDArray[np.float32] | None = None

    @property
    def voxel_snr(self) -> npt.NDArray[np.float64]:
        """(n_voxels,) ratio of each voxel's reference signal to its noise, NaN where it is unknown."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.measures.size / self.noise_std

    def save(self, path: str | Path) -> str:
        """Write an ``.npz`` file and return its path."""
        own = {
            name: np.asarray(getattr(self, name)) for name in ("noise_std", "snr", "noise_is_given", "floor_removed")
        }
        if self.error_factor is not None:
            own["error_factor"] = self.error_factor
        np.savez(path, **own, **self.measures.to_arrays("measures_"))  # type: ignore[arg-type]
        return str(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return cls(
            noise_std=arrays["noise_std"],
            snr=float(arrays["snr"]),
            noise_is_given=bool(arrays["noise_is_given"]),
            floor_removed=bool(arrays["floor_removed"]),
            measures=Measures.from_arrays(arrays, "measures_"),
            error_factor=arrays.get("error_factor"),
        )


class EvidenceCollector:
    """Collects the evidence of a series, chunk by chunk.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        Protocol of the series as acquired.
    mask : ndarray
        (x, y, z) bool.
    noise : SeriesNoise
    """

    def __init__(
        self, estimator: Estimator, acquisition: Acquisition, mask: npt.NDArray[np.bool_], noise: SeriesNoise
    ) -> None:
        protocol, _ = estimator.model.adapt(acquisition)
        self._level = NoiseLevel(estimator.model, protocol, mask)
        self._meter = Meter(estimator, protocol, acquisition)
        self._noise = noise
        self._n_voxels = int(mask.sum())
        self._measures: Measures | None = None

    def add(
        self,
        index: npt.NDArray[np.intp],
        series: npt.NDArray[np.float32],
        signals: npt.NDArray[np.float32],
        maps: ParameterMaps,
        covariates: npt.NDArray[Any] | None,
        *,
        white: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Record the voxels of a chunk.

        Parameters
        ----------
        index : ndarray
            (n,) positions among the masked voxels.
        series : ndarray
            (n, n_images) as acquired.
        signals : ndarray
            (n, n_measurements) as the estimator was given them.
        maps : ParameterMaps
            Its estimates.
        covariates : ndarray or None
            (n, n_covariates) as the estimator was given them.
        white : ndarray, optional
            (n, n_measurements) signals with white noise, see `Meter.measure`.
        """
        given = None if self._noise.std is None else self._noise.std[index]
        self._level.add(index, signals, given, covariates)
        part = self._meter.measure(signals, maps, series=series, covariates=covariates, white=white)
        if self._measures is None:
            self._measures = part.empty(self._n_voxels)
        self._measures.fill(index, part)

    def finish(self) -> Evidence:
        """Return the evidence of all voxels."""
        assert self._measures is not None, "no voxel was added"
        level = self._level
        return Evidence(level.noise_std, level.snr or 0.0, level.is_given, self._noise.floor_removed, self._measures)
