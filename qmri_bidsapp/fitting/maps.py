"""Maps of a fitted series as images, with what they can be trusted for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import UsageError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.fitting.once import certify_once, noise_level_of
from qmri_bidsapp.fitting.series import SeriesFit
from qmri_bidsapp.fitting.trust import Verdict, judge, quantities_of
from qmri_bidsapp.fitting.usable import usable_voxels
from qmri_bidsapp.images.volumes import fill
from qmri_bidsapp.uncertainty.certificate import Certificate
from qmri_bidsapp.uncertainty.ood import Reason

if TYPE_CHECKING:
    import pandas as pd


class Volumes(Mapping[str, npt.NDArray[np.float32]]):
    """One volume per quantity, by its name (``"t2"``), BIDS suffix (``"T2map"``) or either without regard to case.

    Parameters
    ----------
    parameters : sequence of Parameter
        The quantities.
    values : ndarray
        (n_voxels, n_quantities).
    mask : ndarray
        (x, y, z) bool; volumes are NaN outside.
    """

    def __init__(
        self, parameters: tuple[Parameter, ...], values: npt.NDArray[np.floating], mask: npt.NDArray[np.bool_]
    ) -> None:
        self._parameters, self._values, self._mask = parameters, values, mask

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return np.asarray(fill(self._values[:, self._column(name)].astype(np.float32), self._mask, np.nan))

    def __iter__(self) -> Iterator[str]:
        return (parameter.name for parameter in self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def _find(self, name: str) -> int | None:
        wanted = str(name).lower()
        for k, parameter in enumerate(self._parameters):
            if wanted in (parameter.name.lower(), (parameter.bids_suffix or parameter.label).lower()):
                return k
        return None

    def _column(self, name: str) -> int:
        column = self._find(name)
        if column is None:
            raise KeyError(f"There is no map {name!r}; known: {', '.join(self)}.")
        return column


@dataclass(frozen=True, eq=False)
class Maps(Mapping[str, npt.NDArray[np.float32]]):
    """Maps of one fit; ``maps["T2"]`` holds (x, y, z) estimates in the parameter's unit, NaN outside the mask.

    The estimator is certified by simulation when a bias, range or flag is first asked for, which takes seconds to a
    minute.

    Attributes
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition : Acquisition
        Protocol as acquired.
    mask : ndarray
        (x, y, z) bool.
    affine : ndarray
        (4, 4) voxel to mm.
    fit : SeriesFit
        Values by voxel, and what the fit is judged by.
    covariates : ndarray or None
        (n_voxels, n_covariates) that the estimator was given.
    cache : Path or None
        Folder in which certificates are kept for later fits of the same protocol.
    """

    estimator: Estimator
    acquisition: Acquisition
    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]
    fit: SeriesFit
    covariates: npt.NDArray[np.float32] | None = None
    cache: Path | None = None

    # Mappings are compared by value, which arrays are not; two fits are equal if they are the same object.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self._volumes(self.fit.maps.estimate)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.std)

    def __len__(self) -> int:
        return len(self.parameters)

    def __repr__(self) -> str:
        n_voxels = int(self.mask.sum())
        return f"<Maps of {self.estimator.model.name} by {self.estimator.name}: {', '.join(self)}; {n_voxels} voxels>"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters and derived parameters of the model."""
        return self.fit.maps.parameters

    @property
    def std(self) -> Volumes:
        """Standard deviation of each estimate."""
        return self._volumes(self.fit.maps.std)

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """(x, y, z) outcome of the fit, see `core.maps.Status`."""
        return np.asarray(fill(self.fit.maps.status, self.mask, Status.OUTSIDE))

    @property
    def bias(self) -> Volumes:
        """Expected bias of each estimate, given the estimate."""
        return self._readings("bias")

    @property
    def truth_low(self) -> Volumes:
        """Lower limit (5 %) of the true value, given the estimate."""
        return self._readings("lower")

    @property
    def truth_high(self) -> Volumes:
        """Upper limit (95 %) of the true value, given the estimate."""
        return self._readings("upper")

    @property
    def flag(self) -> npt.NDArray[np.uint8]:
        """(x, y, z) whether and why a voxel is unlike all simulated ones, see `uncertainty.ood.Reason`."""
        return np.asarray(fill(self.verdict.flags.reason, self.mask, Reason.OUTSIDE))

    @property
    def p_value(self) -> npt.NDArray[np.float32]:
        """(x, y, z) share of simulated voxels that are at least as unusual; NaN without an estimate."""
        return np.asarray(fill(self.verdict.flags.p_value, self.mask, np.nan))

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(x, y, z) bool: voxels that count in tables, see `fitting.usable.usable_voxels`.

        The fit converged, on no bound but physical limits; given a certificate, the range of the truth is given and
        the voxel is not flagged. See `has_certificate`: without one the status decides.
        """
        labels = (self.verdict.reading.trust, self.verdict.flags.reason) if self.has_certificate else ()
        return np.asarray(fill(usable_voxels(self.fit.maps.status, *labels), self.mask, False))

    @property
    def has_certificate(self) -> bool:
        """Whether biases, ranges and flags can be given; see `certificate`."""
        return self.fit.evidence is not None and self.fit.evidence.snr > 0

    @cached_property
    def certificate(self) -> Certificate:
        """Simulation of this estimator at this protocol and noise.

        Raises
        ------
        UsageError
            If there can be none: neighbouring voxels influence each other's estimates, or the noise is unknown.
        """
        evidence, name = self.fit.evidence, self.estimator.name
        if evidence is None:
            raise UsageError(
                f"There is no certificate: estimator {name} uses neighbouring voxels, or bundles of each voxel; "
                "`usable` is then what `status` says."
            )
        if evidence.snr <= 0:
            raise UsageError("There is no certificate: the noise is unknown; give noise_std, or more images.")
        protocol, _ = self.estimator.model.adapt(self.acquisition)
        noise = noise_level_of(protocol, evidence.snr, floor_removed=evidence.floor_removed)
        with tempfile.TemporaryDirectory() as scratch:
            folder = certify_once(
                self.estimator,
                protocol,
                self.cache or Path(scratch),
                noise=noise,
                noise_is_known=evidence.noise_is_given,
                covariates_are_known=self.covariates is not None,
            )
            return Certificate.load(folder, self.estimator.model)

    @cached_property
    def verdict(self) -> Verdict:
        """What the certificate says of every voxel."""
        estimate, std = quantities_of(self.certificate, self.fit.maps)
        assert self.fit.evidence is not None
        return judge(self.certificate, estimate, std, self.fit.evidence, self.mask, covariates=self.covariates)

    def table(self, regions: Any = None, names: Mapping[int, str] | None = None) -> pd.DataFrame:
        """Return one row per region and saved quantity; statistics are those of the usable voxels.

        Parameters
        ----------
        regions : array_like, optional
            (x, y, z) labels, zero for none; an array, nibabel image or file name. The mask as one region without it.
        names : mapping, optional
            Label -> name of the region.

        Returns
        -------
        DataFrame
            region, quantity, unit, n_voxels, n_usable, mean, std (over voxels), median, q25, q75.
        """
        from qmri_bidsapp.fitting.regions import region_rows

        return region_rows(self, regions, names)

    def to_nifti(self, folder: str | Path, prefix: str = "", *, with_trust: bool = True) -> list[Path]:
        """Write maps, standard deviations and status and, where there can be a certificate, ranges and flags.

        Every image has a JSON sidecar with units, description and method.

        Parameters
        ----------
        folder : path
            Made if missing.
        prefix : str
            Start of every file name, e.g. ``"sub-01_"``.
        with_trust : bool
            Whether to write biases, ranges and flags, which take a certificate.

        Returns
        -------
        list of Path
            The images.
        """
        from qmri_bidsapp.fitting.nifti import write_maps

        return write_maps(self, Path(folder), prefix, with_trust=with_trust)

    def _volumes(self, values: npt.NDArray[np.floating]) -> Volumes:
        return Volumes(self.parameters, values, self.mask)

    def _readings(self, name: str) -> Volumes:
        return Volumes(self.certificate.space.parameters, getattr(self.verdict.reading, name), self.mask)
