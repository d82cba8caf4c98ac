"""Signals of healthy brains for the spherical mean, with tissue that varies between voxels and partial volume.

Sources of the numbers, none of which was chosen for its effect on results:

- means of grey and white matter: Gyori et al. 2021, Table 2 (traditional fitting of five healthy adults);
- standard deviations and correlations within a tissue: estimates of this package (`nlls`) in a public data set of the
  living brain, the sample of MDT (Harms et al. 2017, NeuroImage 155:82; 2 mm, b = 1000 and 2000 s/mm2, 8,865 voxels of
  two slices): in a mixture of four normal distributions, the two with means nearest to the ones above, minus the
  variance of the noise by the Cramer-Rao bound;
- standard deviation between subjects: the relative uncertainty of the intra-axonal diffusivity in Dhital et al. 2019
  (NeuroImage 189:543), 2.25 +- 0.03 um2/ms;
- fluid: free water at body temperature, no neurites. Signals of fluid and tissue are mixed, not their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import SphericalMean
from qmri_bidsapp.demo.phantom import BRAIN_TISSUES, TISSUE_PROPERTIES, make_head
from qmri_bidsapp.evaluation.standards import signals
from qmri_bidsapp.evaluation.table3.table3 import PROTOCOL
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.smt import SphericalMeanTechnique

Array = npt.NDArray[np.float64]

#: Simulated heads: number, voxel size (mm), voxels per head (135,000 in all), and echo time (s), as in the paper.
N_SUBJECTS = 5
VOXEL_SIZE = 2.0
N_VOXELS = 27_000
ECHO_TIME = 0.094
#: Standard deviation of a subject's means over that of all subjects, relative to the mean.
SUBJECT_SPREAD = 0.03 / 2.25


@dataclass(frozen=True)
class NeuriteDistribution:
    """Neurite fraction and diffusivity (mm2/s) of a tissue's voxels: means, standard deviations and correlation."""

    mean: tuple[float, float]
    std: tuple[float, float] = (0.0, 0.0)
    correlation: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Return (n, 2) values of one subject."""
        centre = np.array(self.mean) * (1 + SUBJECT_SPREAD * rng.standard_normal(2))
        normal = rng.standard_normal((n, 2))
        normal[:, 1] = self.correlation * normal[:, 0] + np.sqrt(1 - self.correlation**2) * normal[:, 1]
        return np.asarray(centre + np.array(self.std) * normal)


NEURITE_DISTRIBUTIONS = {
    "gm": NeuriteDistribution((0.16, 1.14e-3), (0.08, 0.18e-3), 0.85),
    "wm": NeuriteDistribution((0.67, 2.20e-3), (0.08, 0.24e-3), 0.67),
    "csf": NeuriteDistribution((0.0, 3.00e-3)),
}


def brain_signals(
    weights: dict[str, Array], model: SignalModel, acquisition: SphericalMean, rng: np.random.Generator
) -> Array:
    """Return noise-free signals of the voxels of one subject.

    Parameters
    ----------
    weights : dict
        Name in `NEURITE_DISTRIBUTIONS` -> (n_voxels,) unweighted signal of that tissue in each voxel.
    model : SignalModel
        Its second and third parameter are neurite fraction and diffusivity.
    acquisition : SphericalMean
    rng : numpy.random.Generator

    Returns
    -------
    ndarray
        (n_voxels, n_measurements), scaled to a mean unweighted signal of one over voxels that are mostly grey or
        white matter.
    """
    bounds = np.array([p.bounds for p in model.parameters[1:3]]).T
    parts = []
    for name, weight in weights.items():
        theta = NEURITE_DISTRIBUTIONS[name].draw(len(weight), rng).clip(*bounds)
        parts.append(signals(model, np.column_stack([weight, theta]), acquisition))
    total = np.sum(list(weights.values()), axis=0)
    is_tissue = weights["gm"] + weights["wm"] > 0.5 * total
    return np.asarray(np.sum(parts, axis=0) / total[is_tissue].mean())


def simulated_subjects() -> list[Array]:
    """Return noise-free signals of the brains of simulated heads without a lesion, (n_voxels, 5) each."""
    subjects = []
    for seed in range(N_SUBJECTS):
        head, rng = make_head(1, VOXEL_SIZE, seed=seed), np.random.default_rng(seed)
        chosen = rng.choice(np.flatnonzero(head.brain), N_VOXELS, replace=False)
        weights = {
            name: head.fractions[name].ravel()[chosen]
            * TISSUE_PROPERTIES[name].density
            * np.exp(-ECHO_TIME / TISSUE_PROPERTIES[name].t2)
            for name in BRAIN_TISSUES
        }
        subjects.append(brain_signals(weights, SphericalMeanTechnique(), PROTOCOL, rng))
    return subjects
