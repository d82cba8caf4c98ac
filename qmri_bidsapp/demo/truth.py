"""The true maps of a simulated head, one for every map that the app writes by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.phantom import Mask, PhantomHead, Volume
from qmri_bidsapp.estimators.likelihood.log_linear import WeightedLinearLeastSquares
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.kurtosis import DiffusionKurtosis
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2
from qmri_bidsapp.models.smt import SphericalMeanTechnique
from qmri_bidsapp.models.tensor import DiffusionTensor

#: Meaning of the labels of tissues.
TISSUES = "Largest fraction: 1 grey matter, 2 white matter, 3 CSF"
#: Axes of the gradient table relative to those of the world. FSL's convention: the determinant of the demo's affines is
#: positive, so that the first is reversed.
TABLE_AXES = (-1, 1, 1)
SIMULATED, FITTED = "true value", "fit to the signal without noise"


def true_maps(
    head: PhantomHead,
    factor: Volume,
    neurites: Mapping[str, Volume] | None,
    signal: npt.NDArray[np.float64],
    acquisition: Diffusion,
) -> Iterator[tuple[str, Volume, dict[str, str]]]:
    """Yield the true maps on the grid of the series.

    Tensor and kurtosis are expansions of any signal, and no simulated head obeys them: their true value is what their
    estimator gives without noise. A model of tissue has a true value only where the signal is its own.

    Parameters
    ----------
    head : PhantomHead
    factor : ndarray
        (x, y, z) inversion factor.
    neurites : mapping or None
        Parameters of NODDI, see `signals.diffusion`.
    signal : ndarray
        (x, y, z, n_measurements) diffusion signal without noise.
    acquisition : Diffusion
        Its protocol; directions and axes of `neurites` are in world axes. Maps that rotate with the tissue come in the
        axes of the gradient table, as those of the app.

    Yields
    ------
    str
        Path below the folder of the participant, with ``{}`` for its name.
    ndarray
        (x, y, z), NaN outside the brain and in the region that no model describes.
    dict
        Sidecar.
    """
    yield from simulated_maps(head, factor, neurites)
    known = head.brain & ~head.unmodelled
    table = tuple(tuple(float(x) for x in row) for row in np.asarray(acquisition.direction) * TABLE_AXES)
    acquisition = replace(acquisition, direction=table)
    for model in (DiffusionTensor(), DiffusionKurtosis()):
        yield from _maps(model, _fitted(model, signal, acquisition, known), known, FITTED)


def simulated_maps(
    head: PhantomHead, factor: Volume, neurites: Mapping[str, Volume] | None
) -> Iterator[tuple[str, Volume, dict[str, str]]]:
    """Yield the maps of `true_maps` that the signals were made from."""
    p, known = head.parameters, head.brain & ~head.unmodelled
    amplitude, s0 = signals.GAIN * p["density"], signals.without_diffusion(head)
    relaxation = {"m0": amplitude, "inversion_factor": factor, "t1": p["t1"], "r1": 1 / p["t1"]}
    yield from _maps(InversionRecoveryT1(), relaxation, known, SIMULATED)
    yield from _maps(SpinEchoT2(), {"s0": amplitude, "t2": p["t2"], "r2": 1 / p["t2"]}, known, SIMULATED)
    if neurites is None:
        tissue = {"s0": s0, "intra_fraction": p["fraction"], "diffusivity": p["diffusivity"]}
        yield from _maps(SphericalMeanTechnique(), tissue, known, SIMULATED)
    else:
        # The azimuth of an axis whose first component is reversed.
        phi = np.where(neurites["phi"] > 0, 180 - neurites["phi"], -180 - neurites["phi"])
        yield from _maps(Noddi(), {"s0": s0, **neurites, "phi": phi}, known, SIMULATED)


def label_maps(head: PhantomHead, fine: PhantomHead) -> Iterator[tuple[str, npt.NDArray[Any], Any, dict[str, str]]]:
    """Yield path, values, affine and sidecar of tissues, masks and, where there are any, regions.

    A region lies in the folder of the data that differ there: the lesion changes diffusion only.
    """
    brain = {"Description": "Brain and CSF", "Type": "Brain"}
    yield "anat/{}_dseg", fine.dseg, fine.affine, {"Description": TISSUES}
    yield "anat/{}_desc-series_dseg", head.dseg, head.affine, {"Description": TISSUES}
    yield "anat/{}_desc-brain_mask", fine.brain, fine.affine, brain
    yield "dwi/{}_desc-brain_mask", head.brain, head.affine, brain
    if head.lesion.any():
        yield "dwi/{}_label-lesion_mask", head.lesion, head.affine, {"Description": "Lesion", "Type": "Lesion"}
    if head.unmodelled.any():
        sidecar = {"Description": "Region that no model describes", "Type": "ROI"}
        for datatype in ("anat", "dwi"):
            yield f"{datatype}/{{}}_label-unmodelled_mask", head.unmodelled, head.affine, sidecar


def _maps(
    model: SignalModel, values: Mapping[str, Volume], known: Mask, origin: str
) -> Iterator[tuple[str, Volume, dict[str, str]]]:
    for parameter in (*model.parameters, *model.derived):
        if not parameter.saved:
            continue
        sidecar = {"Description": f"{parameter.description}, {origin}", "Units": parameter.unit}
        yield _name(model, parameter), np.where(known, values[parameter.name], np.nan), sidecar


def _name(model: SignalModel, parameter: Parameter) -> str:
    if parameter.bids_suffix is not None:
        return f"anat/{{}}_{parameter.bids_suffix}"
    return f"dwi/{{}}_model-{model.name}_param-{parameter.label}_dwimap"


def _fitted(
    model: SignalModel, signal: npt.NDArray[np.float64], acquisition: Diffusion, inside: Mask
) -> dict[str, Volume]:
    """Return the maps of a fit; NaN where it ends on a bound, as then its value depends on where we drew that bound."""
    protocol, matrix = model.adapt(acquisition)
    voxels = signal[inside] if matrix is None else signal[inside] @ matrix
    maps = WeightedLinearLeastSquares(model).fit(protocol).predict(voxels)
    maps.estimate[maps.status != Status.OK] = np.nan
    found = {}
    for column, parameter in enumerate(maps.parameters):
        found[parameter.name] = np.full(inside.shape, np.nan)
        found[parameter.name][inside] = maps.estimate[:, column]
    return found
