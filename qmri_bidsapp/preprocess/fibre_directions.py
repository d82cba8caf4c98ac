"""Number and directions of fibres per voxel, by multi-tissue constrained spherical deconvolution.

The signal is a non-negative fibre orientation distribution convolved with the response of white matter, plus isotropic
grey matter and cerebrospinal fluid (Jeurissen et al. 2014, NeuroImage 103:411). Bases and peaks are DIPY's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import B0_THRESHOLD, Diffusion, reference_limit
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.models.layout import n_distinct_axes
from qmri_bidsapp.models.legendre import even_legendre
from qmri_bidsapp.solvers.inequality_least_squares import non_negative_least_squares

Array = npt.NDArray[np.float64]

MAX_FIBRES = 3
#: Spherical harmonics of order 8 resolve crossings of 45 degrees (Tournier et al. 2007, NeuroImage 35:1459).
MAX_ORDER = 8
#: Number of coefficients of order 4, the lowest order that can show a crossing.
MIN_DIRECTIONS = 15
#: Smallest height of a peak relative to the highest one, and smallest angle to every higher one, degree.
RELATIVE_PEAK = 0.25
MIN_SEPARATION = 30.0
#: Smallest height of a peak relative to that of a single fibre that fills the voxel. Jeurissen et al. 2013 (Hum Brain
#: Mapp 34:2747) use a tenth; noise in simulated grey matter at SNR 30 reaches this.
ABSOLUTE_PEAK = 0.15
#: Number of voxels that a response is averaged over.
N_RESPONSE_VOXELS = 300
#: Largest b-value, s/mm2, of the tensor fit that separates the tissues.
TENSOR_B_VALUE = 1500.0
#: Mean diffusivity above which a voxel is fluid, mm2/s, and fractional anisotropy below which it is isotropic.
FLUID_DIFFUSIVITY = 2.0e-3
ISOTROPIC_FA = 0.2
#: Diffusivity of free water at body temperature, mm2/s.
FREE_WATER = 3.0e-3
#: Voxels per batch.
CHUNK_SIZE = 8192


class Orientations(NamedTuple):
    """Result of the deconvolution.

    Attributes
    ----------
    n_fibres : ndarray
        (x, y, z) float32, 0 to 3; NaN outside the mask and where a value is not finite.
    directions : ndarray
        (x, y, z, 3, 3) float32, fibres by descending amplitude, each a vector in the frame of the gradient directions
        whose length is the amplitude of the orientation distribution relative to that of a single coherent fibre;
        NaN where absent.
    notes : list of str
        Assumptions that were made.
    """

    n_fibres: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32]
    notes: list[str]


class Responses(NamedTuple):
    """Signals of pure tissue, relative to that of white matter without weighting.

    Attributes
    ----------
    fibre : ndarray
        (n_shells, n_orders) Legendre coefficients about the fibre, l = 0, 2, ...
    isotropic : ndarray
        (n_tissues, n_shells) of fluid and, where there are at least two shells beside b = 0, of grey matter.
    scale : float
        Signal of white matter without weighting.
    """

    fibre: Array
    isotropic: Array
    scale: float


def refusal(acquisition: Diffusion) -> str | None:
    """Return why a protocol cannot resolve fibre directions; None if it can."""
    n_directions = _n_axes(acquisition)
    if n_directions >= MIN_DIRECTIONS and min(acquisition.b_value) <= reference_limit(acquisition.b_value):
        return None
    return f"Crossing fibres need b = 0 and {MIN_DIRECTIONS} directions, got {n_directions}: one bundle per voxel."


def order_of(acquisition: Diffusion) -> int:
    """Return the highest order of spherical harmonics that has no more coefficients than there are directions."""
    n_directions = _n_axes(acquisition)
    return max(order for order in range(0, MAX_ORDER + 1, 2) if (order + 1) * (order + 2) <= 2 * n_directions)


def _n_axes(acquisition: Diffusion) -> int:
    """Return the number of distinct axes of the weighted volumes."""
    weighted = np.asarray(acquisition.b_value) > reference_limit(acquisition.b_value)
    return n_distinct_axes(np.asarray(acquisition.direction)[weighted])


def find_orientations(
    data: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    acquisition: Diffusion,
    tissues: npt.NDArray[np.uint8] | None = None,
) -> Orientations:
    """Find 0 to 3 fibre directions in every voxel.

    Parameters
    ----------
    data : ndarray
        (x, y, z, n_measurements).
    mask : ndarray
        (x, y, z) bool.
    acquisition : Diffusion
    tissues : ndarray, optional
        (x, y, z) labels: 1 grey matter, 2 white matter, 3 cerebrospinal fluid.

    Raises
    ------
    InputError
        If no voxel shows an anisotropic response.
    """
    usable = mask & np.isfinite(data).all(axis=-1) & (data > 0).any(axis=-1)
    labels = None if tissues is None else tissues[usable]
    signals = data[usable]
    responses, notes = estimate_responses(signals, acquisition, order_of(acquisition), labels)
    count = np.full(mask.shape, np.nan, dtype=np.float32)
    directions = np.full((*mask.shape, MAX_FIBRES, 3), np.nan, dtype=np.float32)
    count[usable], directions[usable] = deconvolve(signals, acquisition, responses)
    return Orientations(count, directions, notes)


def estimate_responses(
    signals: npt.NDArray[np.floating], acquisition: Diffusion, order: int, tissues: npt.NDArray[np.uint8] | None = None
) -> tuple[Responses, list[str]]:
    """Estimate the responses of white matter, fluid and grey matter from the voxels that show each most clearly.

    White matter: those of highest fractional anisotropy, each turned to its principal direction; fluid and grey
    matter: isotropic voxels of mean diffusivity above and below `FLUID_DIFFUSIVITY` (Dhollander et al. 2016, ISMRM
    Workshop on Breaking the Barriers of Diffusion MRI, 5), within the tissue where a segmentation is known.

    Parameters
    ----------
    signals : ndarray
        (n_voxels, n_measurements), finite.
    acquisition : Diffusion
    order : int
        Of the spherical harmonics.
    tissues : ndarray, optional
        (n_voxels,) labels: 1 grey matter, 2 white matter, 3 cerebrospinal fluid.

    Returns
    -------
    responses : Responses
    notes : list of str
        Which tissue was not found, and what was assumed instead.
    """
    fa, md, axis = _tensor(signals, acquisition)

    def choose(score: Array, possible: npt.NDArray[np.bool_], label: int) -> npt.NDArray[np.intp]:
        of_tissue = possible if tissues is None else possible & (tissues == label)
        candidates = np.flatnonzero(of_tissue if of_tissue.any() else possible)
        return candidates[np.argsort(-score[candidates], kind="stable")[:N_RESPONSE_VOXELS]]

    isotropic = fa < ISOTROPIC_FA
    white = choose(fa, (fa < 1) & ~isotropic & (md < FLUID_DIFFUSIVITY), 2)
    if not len(white):
        raise InputError("No voxel of the series has anisotropic diffusion: there is no response to deconvolve with.")
    shells = acquisition.shells()
    fibre = _zonal_response(signals[white], axis[white], acquisition, order)
    scale = float(fibre[0, 0])
    b_value = np.array([np.mean(np.asarray(acquisition.b_value)[shell]) for shell in shells])
    means: list[Array] = []
    notes = []
    for name, chosen, diffusivity in (
        ("fluid", choose(md, isotropic & (md > FLUID_DIFFUSIVITY), 3), FREE_WATER),
        ("grey matter", choose(-np.abs(md - np.median(md)), isotropic & (md < FLUID_DIFFUSIVITY), 1), 0.8e-3),
    ):
        if len(chosen):
            means.append(np.array([signals[np.ix_(chosen, shell)].mean() for shell in shells]))
        else:
            means.append(scale * np.exp(-b_value * diffusivity))
            notes.append(f"No voxel of {name} was found: its diffusivity is taken as {diffusivity:g} mm2/s.")
    n_tissues = min(len(means), len(shells) - 1)
    return Responses(fibre / scale, np.array(means[:n_tissues]) / scale, scale), notes


def _tensor(signals: npt.NDArray[np.floating], acquisition: Diffusion) -> tuple[Array, Array, Array]:
    """Return fractional anisotropy (n,), mean diffusivity (n,) and principal direction (n, 3)."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    b_value = np.asarray(acquisition.b_value)
    low = np.zeros(len(b_value), dtype=bool)
    for shell in acquisition.shells():
        # Room for the scatter of recorded b-values.
        low[shell] = b_value[shell].mean() <= TENSOR_B_VALUE + B0_THRESHOLD
    limit = reference_limit(acquisition.b_value)
    used = low if np.sum(low & (b_value > limit)) >= 6 else np.ones_like(low)
    table = gradient_table(b_value[used], bvecs=np.asarray(acquisition.direction)[used], b0_threshold=limit, atol=0.1)
    fit = TensorModel(table).fit(signals[:, used])
    return fit.fa, fit.md, fit.evecs[..., 0]


def _zonal_response(signals: npt.NDArray[np.floating], axis: Array, acquisition: Diffusion, order: int) -> Array:
    """Return (n_shells, n_orders) Legendre coefficients of the mean signal about each voxel's axis."""
    cosine = axis @ np.asarray(acquisition.direction).T
    rows = []
    for number, shell in enumerate(acquisition.shells()):
        n_terms = order // 2 + 1 if number else 1
        design = even_legendre(cosine[:, shell].ravel(), n_terms)
        coefficients = np.linalg.lstsq(design, signals[:, shell].ravel(), rcond=None)[0]
        rows.append(np.pad(coefficients, (0, order // 2 + 1 - n_terms)))
    return np.array(rows)


def design_matrix(acquisition: Diffusion, responses: Responses) -> Array:
    """Return the contributions of isotropic tissues and harmonics, (n_measurements, n_tissues + n_harmonics).

    By the addition theorem, a distribution with coefficients f_lm gives the signal
    sum r_l 4 pi / (2 l + 1) f_lm Y_lm, with r_l the Legendre coefficients of the response.
    """
    from dipy.core.geometry import cart2sphere
    from dipy.reconst.shm import real_sh_descoteaux

    direction = np.asarray(acquisition.direction)
    _, polar, azimuth = cart2sphere(*direction.T)
    order = 2 * (responses.fibre.shape[1] - 1)
    harmonics, _, degree = real_sh_descoteaux(order, polar, azimuth, legacy=False)
    matrix = np.empty((len(direction), len(responses.isotropic) + harmonics.shape[1]))
    for number, shell in enumerate(acquisition.shells()):
        kernel = responses.fibre[number, degree // 2] * 4 * np.pi / (2 * degree + 1)
        matrix[shell] = np.column_stack(
            [np.tile(responses.isotropic[:, number], (len(shell), 1)), harmonics[shell] * kernel]
        )
    return matrix


def deconvolve(
    signals: npt.NDArray[np.floating], acquisition: Diffusion, responses: Responses
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return number (n_voxels,) and directions (n_voxels, 3, 3) of fibres; see `Orientations`."""
    from dipy.core.sphere import HemiSphere
    from dipy.data import default_sphere
    from dipy.direction.peaks import peak_directions
    from dipy.reconst.shm import real_sh_descoteaux

    design = design_matrix(acquisition, responses)
    n_isotropic = len(responses.isotropic)
    order = 2 * (responses.fibre.shape[1] - 1)
    coarse = HemiSphere.from_sphere(default_sphere)
    fine = coarse.subdivide(n=1)
    basis, finer = (real_sh_descoteaux(order, s.theta, s.phi, legacy=False)[0] for s in (coarse, fine))
    constraint = np.zeros((n_isotropic + len(basis), design.shape[1]))
    constraint[:n_isotropic, :n_isotropic] = np.eye(n_isotropic)
    constraint[n_isotropic:, n_isotropic:] = basis
    count = np.zeros(len(signals), dtype=np.float32)
    directions = np.full((len(signals), MAX_FIBRES, 3), np.nan, dtype=np.float32)
    for first in range(0, len(signals), CHUNK_SIZE):
        part = slice(first, first + CHUNK_SIZE)
        coefficients = non_negative_least_squares(design, signals[part].astype(float) / responses.scale, constraint)
        # The sensitivity of the coil differs from voxel to voxel; it cancels in the fraction of the total.
        total = coefficients[:, :n_isotropic].sum(axis=1) + np.sqrt(4 * np.pi) * coefficients[:, n_isotropic]
        highest = np.maximum(total, np.finfo(float).tiny) * _highest_peak(order)
        amplitude = np.ascontiguousarray(coefficients[:, n_isotropic:] @ finer.T) / highest[:, None]
        for voxel in first + np.flatnonzero(amplitude.max(axis=1) > ABSOLUTE_PEAK):
            vectors, heights, _ = peak_directions(
                amplitude[voxel - first],
                fine,
                relative_peak_threshold=RELATIVE_PEAK,
                min_separation_angle=MIN_SEPARATION,
            )
            n = min(MAX_FIBRES, int(np.sum(heights > ABSOLUTE_PEAK)))
            count[voxel] = n
            directions[voxel, :n] = vectors[:n] * heights[:n, None]
    return count, directions


def _highest_peak(order: int) -> float:
    """Return the highest value that a non-negative even polynomial of this degree and of integral one can have.

    It is reached by the square of the kernel of half the degree, which has this many terms.
    """
    n_terms = (order // 2 + 1) * (order // 2 + 2) / 2
    return float(n_terms / (4 * np.pi))
