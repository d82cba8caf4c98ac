"""The record of the usable voxels of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmri_bidsapp.fitting.clusters import Clusters


@dataclass(frozen=True)
class UsableRecord:
    """The voxels of a fit that count in tables, see `fitting.usable`.

    Attributes
    ----------
    series, model, estimator : str
        As in the `FitRecord`.
    mask : str
        Mask of the usable voxels.
    n_voxels, n_usable : int
        Voxels of the mask of the series, and usable ones among them.
    n_unlike : int or None
        Voxels unlike all simulated ones; None without a certificate.
    clusters : Clusters
        Of the voxels unlike all simulated ones.
    """

    series: str
    model: str
    estimator: str
    mask: str
    n_voxels: int = 0
    n_usable: int = 0
    n_unlike: int | None = None
    clusters: Clusters = field(default_factory=Clusters)

    @property
    def fit(self) -> str:
        """Name of the fit, for messages."""
        return f"{self.series} {self.model} ({self.estimator})"

    @property
    def part_usable(self) -> float:
        """Usable voxels as a fraction of all."""
        return self.n_usable / max(1, self.n_voxels)

    @property
    def part_unlike(self) -> float | None:
        """Voxels unlike all simulated ones as a fraction of all; None without a certificate."""
        return None if self.n_unlike is None else self.n_unlike / max(1, self.n_voxels)
