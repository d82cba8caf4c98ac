"""Other programs that solve the same problems, for comparison only. Only the command imports this module.

A peer is prepared for a protocol and then fits (n_voxels, n_measurements) signals on one core, with its own defaults.
AMICO and dmipy are measured here and used nowhere.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.acquisition import Diffusion, InversionRecovery, MultiEcho, SphericalMean

Array = npt.NDArray[np.float64]
#: Takes signals, returns (n_voxels, n_parameters) estimates in BIDS units.
Fit = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
#: Protocols with b-values, which is all that IVIM needs.
BValues = Diffusion | SphericalMean


@dataclass(frozen=True)
class Peer:
    """A program that fits a model.

    Attributes
    ----------
    name : str
        Name in tables.
    model : str
        Registry name of the model.
    package : str
        Package to install.
    estimates : tuple of str
        Columns that the fit returns.
    prepare : callable
        Takes a protocol, returns the fit; raises ImportError if the package is not installed.
    first : int
        Voxels of the shortest timed run, enough to hide the overhead of a call.
    """

    name: str
    model: str
    package: str
    estimates: tuple[str, ...]
    prepare: Callable[[Any], Fit]
    first: int = 16


@contextmanager
def one_core() -> Iterator[None]:
    """Restrict a peer to one core, and silence its warnings."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _least_squares(
    model: Callable[[Array], Array], start: Callable[[Array], Array], low: tuple[float, ...], high: tuple[float, ...]
) -> Fit:
    """Return a loop over voxels of `scipy.optimize.least_squares` within bounds, signals divided by their largest."""
    from scipy.optimize import least_squares

    def fit_one(signal: Array) -> Array:
        size = signal.max()
        relative = signal / size
        first = np.clip(start(relative), np.array(low) * 1.001 + 1e-9, np.array(high) * 0.999)
        found = least_squares(lambda x: model(x) - relative, first, bounds=(low, high), x_scale=first).x
        return np.asarray(found * [size, *(1.0,) * (len(found) - 1)])

    return lambda signals: np.array([fit_one(signal) for signal in np.asarray(signals, dtype=float)])


def scipy_t1(acquisition: InversionRecovery) -> Fit:
    """Prepare |A (1 - B exp(-TI / T1))|: A, B, T1 (s); T1 starts from the null."""
    times = np.asarray(acquisition.inversion_time)
    return _least_squares(
        lambda x: np.abs(x[0] * (1 - x[1] * np.exp(-times / x[2]))),
        lambda signal: np.array([1.0, 1.9, times[signal.argmin()] / np.log(1.9)]),
        (0.0, 0.5, 0.02),
        (20.0, 3.0, 8.0),
    )


def scipy_t2(acquisition: MultiEcho) -> Fit:
    """Prepare S0 exp(-TE / T2): S0, T2 (s)."""
    times = np.asarray(acquisition.echo_time)
    return _least_squares(
        lambda x: x[0] * np.exp(-times / x[1]), lambda _signal: np.array([1.2, 0.08]), (0.0, 0.001), (20.0, 4.0)
    )


def scipy_smt(acquisition: SphericalMean) -> Fit:
    """Prepare the two-compartment spherical mean (Gyori et al. 2021, eq. 1): S0, fraction, diffusivity (mm2/s)."""
    from scipy.special import erf

    b_value = np.asarray(acquisition.b_value)

    def stick(x: Array) -> Array:
        root = np.sqrt(np.maximum(x, 1e-9))
        return np.asarray(np.sqrt(np.pi) / 2 * erf(root) / root)

    def model(x: Array) -> Array:
        v, scaled = x[1], b_value * x[2]
        return x[0] * (v * stick(scaled) + (1 - v) * stick(v * scaled) * np.exp(-(1 - v) * scaled))

    return _least_squares(model, lambda _signal: np.array([1.0, 0.5, 1.5e-3]), (0.0, 0.0, 0.0), (5.0, 1.0, 3.0e-3))


def scipy_ivim(acquisition: BValues) -> Fit:
    """Prepare S0 (f exp(-b D*) + (1 - f) exp(-b D)): S0, f, D*, D (mm2/s)."""
    b_value = np.asarray(acquisition.b_value)
    return _least_squares(
        lambda x: x[0] * (x[1] * np.exp(-b_value * x[2]) + (1 - x[1]) * np.exp(-b_value * x[3])),
        lambda _signal: np.array([1.0, 0.1, 0.02, 1e-3]),
        (0.0, 0.0, 3e-3, 0.0),
        (5.0, 0.7, 0.3, 3e-3),
    )


def dipy_tensor(acquisition: Diffusion) -> Fit:
    """Prepare dipy's weighted least squares: FA, MD (mm2/s)."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    table = gradient_table(np.asarray(acquisition.b_value), bvecs=np.asarray(acquisition.direction), b0_threshold=0)
    model = TensorModel(table, fit_method="WLS")

    def fit(signals: npt.NDArray[Any]) -> Array:
        found = model.fit(signals)
        return np.stack([found.fa, found.md], axis=1)

    return fit


def dipy_ivim(acquisition: BValues) -> Fit:
    """Prepare dipy's trust-region fit: S0, f, D*, D (mm2/s). It requires directions but does not use them."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel

    b_value = np.asarray(acquisition.b_value)
    table = gradient_table(b_value, bvecs=np.outer(b_value > 0, [1.0, 0.0, 0.0]), b0_threshold=0)
    model = IvimModel(table, fit_method="trr")
    return lambda signals: np.asarray(model.fit(np.asarray(signals, dtype=float)).model_params)


def ivim_segmented(acquisition: BValues) -> Fit:
    """Prepare ivim-mri's segmented fit: S0, f, D*, D (mm2/s)."""
    import nibabel as nib
    from ivim.fit import seg

    def fit(signals: npt.NDArray[Any]) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            image, b_file, base = (str(Path(folder) / name) for name in ("x.nii", "x.bval", "fit"))
            _save_voxels(signals, image)
            np.savetxt(b_file, np.asarray(acquisition.b_value)[None])
            seg(image, b_file, "diffusive", outbase=base)
            maps = [nib.load(f"{base}_{name}.nii.gz").get_fdata().ravel() for name in ("S0", "f", "Dstar", "D")]
        return np.stack(maps, axis=1)

    return fit


def amico_noddi(acquisition: Diffusion) -> Fit:
    """Prepare AMICO's NODDI: NDI, ODI, FWF. Its computations per protocol happen here, not in the fit."""
    import amico
    import amico.lut

    amico.util.set_verbose(0)
    folder = tempfile.TemporaryDirectory()
    # Otherwise its cache would be in the home folder.
    amico.lut.dipy_home = folder.name
    amico.lut.precompute_rotation_matrices(12, 500)
    np.savetxt(Path(folder.name) / "x.scheme", np.column_stack([acquisition.direction, acquisition.b_value]))
    evaluation = amico.Evaluation(folder.name, ".")
    evaluation.set_config("nthreads", 1)

    def load(signals: npt.NDArray[Any]) -> None:
        _save_voxels(signals, Path(folder.name) / "x.nii")
        evaluation.load_data("x.nii", "x.scheme")

    load(np.ones((2, acquisition.n_measurements)))
    evaluation.set_model("NODDI")
    evaluation.generate_kernels(regenerate=True, ndirs=500)
    evaluation.load_kernels()

    def fit(signals: npt.NDArray[Any]) -> Array:
        load(signals)
        evaluation.fit()
        return np.asarray(evaluation.RESULTS["MAPs"]).reshape(len(signals), 3)

    return fit


def dmipy_noddi(acquisition: Diffusion) -> Fit:
    """Prepare dmipy's NODDI (brute force, then local): NDI, ODI, FWF."""
    with redirect_stdout(io.StringIO()):
        from dmipy_fit.core.acquisition_scheme import acquisition_scheme_from_bvalues
        from dmipy_fit.custom_optimizers.reference_models import noddi

        model = noddi()
    scheme = acquisition_scheme_from_bvalues(np.asarray(acquisition.b_value) * 1e6, np.asarray(acquisition.direction))
    bundle = "SD1WatsonDistributed_1_"

    def fit(signals: npt.NDArray[Any]) -> Array:
        with redirect_stdout(io.StringIO()):
            found = model.fit(scheme, np.asarray(signals, dtype=float), use_parallel_processing=False)
        values = found.fitted_parameters
        columns = (bundle + "partial_volume_0", bundle + "SD1Watson_1_odi", "partial_volume_1")
        return np.stack([values[column] for column in columns], axis=1)

    return fit


def _save_voxels(signals: npt.NDArray[Any], path: str | Path) -> None:
    """Write (n_voxels, n_measurements) signals as an image of n_voxels x 1 x 1."""
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.asarray(signals, dtype=np.float32)[:, None, None], np.eye(4)), path)


_IVIM = ("s0", "f", "d_star", "d")
_NODDI = ("ndi", "odi", "fwf")
PEERS = (
    Peer("scipy least_squares", "t1", "scipy", ("m0", "inversion_factor", "t1"), scipy_t1),
    Peer("scipy least_squares", "t2", "scipy", ("s0", "t2"), scipy_t2),
    Peer("scipy least_squares", "smt", "scipy", ("s0", "intra_fraction", "diffusivity"), scipy_smt),
    Peer("scipy least_squares", "ivim", "scipy", _IVIM, scipy_ivim),
    Peer("dipy trr", "ivim", "dipy", _IVIM, dipy_ivim),
    Peer("ivim-mri segmented", "ivim", "ivim-mri", _IVIM, ivim_segmented),
    Peer("AMICO", "noddi", "dmri-amico", _NODDI, amico_noddi),
    Peer("dmipy", "noddi", "dmipy-fit", _NODDI, dmipy_noddi, first=256),
    Peer("dipy WLS", "tensor", "dipy", ("fa", "md"), dipy_tensor),
)
