"""How often wrong estimates are not marked in images that went through the whole app, under minor faults.

Slabs of simulated heads, one for each fault, are written as a BIDS data set; the app maps it, and the maps are compared
with the truth voxel by voxel. What counts is the same as in `robustness`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from qmri_bidsapp.bids.record import FitRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import read_record, record_files
from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, InversionRecovery, MultiEcho
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.dataset import write_series, write_truth
from qmri_bidsapp.demo.neurites import neurite_parameters
from qmri_bidsapp.demo.phantom import PhantomHead, make_head
from qmri_bidsapp.demo.truth import TISSUES, simulated_maps
from qmri_bidsapp.evaluation.flags.image_faults import ImageFault, image_faults
from qmri_bidsapp.evaluation.flags.robustness import Rates, rates_of
from qmri_bidsapp.evaluation.flags.variations import without
from qmri_bidsapp.evaluation.standards import AMPLITUDE
from qmri_bidsapp.evaluation.truth.files import TRUTH_FOLDER, fit_masks, read, true_map
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.relaxometry import InversionRecoveryT1, SpinEchoT2
from qmri_bidsapp.preprocess.rigid import MIN_SLICES
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.uncertainty.inverse import Trust

Array = npt.NDArray[np.float64]

#: BIDS suffix of the series of each model.
KINDS = {"t1": "IRT1", "t2": "MESE", "noddi": "dwi", "smt": "dwi"}
#: Voxel size, mm, of the demo: with larger voxels the patches of denoising hold too many tissues.
VOXEL_SIZE = 4.5
#: Grey and white matter of one slice, voxels, from the height (mm, MNI) of the lowest one upwards; default number.
SLICE_VOXELS, LOWEST = 900, 0.0
N_VOXELS_EACH = 7200


@dataclass(frozen=True)
class Head:
    """A head with the noise-free signals that its protocols give."""

    phantom: PhantomHead
    neurites: dict[str, Any] | None
    seed: int

    def signal(self, acquisition: Acquisition) -> Array:
        """Return noise-free signals, (x, y, z, n); of inversion recoveries with their signs."""
        p = self.phantom.parameters
        amplitude = signals.GAIN * p["density"]
        if isinstance(acquisition, Diffusion):
            # The same generator gives the same fibres.
            rng = np.random.default_rng((self.seed, 1))
            return signals.diffusion(self.phantom, acquisition, rng, self.neurites)[1]
        model: SignalModel = SpinEchoT2()
        theta = [amplitude, p["t2"]]
        if isinstance(acquisition, InversionRecovery):
            model, acquisition = InversionRecoveryT1(), replace(acquisition, signed=True)
            theta = [amplitude, signals.inversion_recovery_signal(self.phantom)[1], p["t1"]]
        with torch.no_grad():
            return np.asarray(model.signal(torch.tensor(np.stack(theta, axis=-1)), acquisition).numpy())


def slab_of_head(n: int, seed: int) -> PhantomHead:
    """Return slices through the middle of a head, with about that many voxels of grey and white matter."""
    head = make_head(1, VOXEL_SIZE, seed=seed)
    first = round((LOWEST - head.affine[2, 3]) / VOXEL_SIZE)
    levels = slice(first, first + max(MIN_SLICES, round(n / SLICE_VOXELS)))
    affine = head.affine.copy()
    affine[2, 3] += VOXEL_SIZE * first
    return PhantomHead(
        affine,
        {name: values[..., levels] for name, values in head.fractions.items()},
        {name: values[..., levels] for name, values in head.parameters.items()},
        head.lesion[..., levels],
        head.unmodelled[..., levels],
    )


def protocol_of(model: str, seed: int) -> Any:
    """Return the protocol of the demo for a model; directions of a diffusion series are in world axes."""
    known: dict[str, Acquisition] = {
        "IRT1": InversionRecovery(signals.INVERSION_TIMES), "MESE": MultiEcho(signals.ECHO_TIMES),
    }  # fmt: skip
    kind = KINDS[model]
    return known[kind] if kind in known else signals.gradient_table(np.random.default_rng((seed, 2)))


def write_heads(folder: Path, model: str, *, n: int = N_VOXELS_EACH, seed: int = 0) -> dict[str, str]:
    """Write a BIDS data set with a head for each fault of the series of a model, and its truth.

    Parameters
    ----------
    folder : Path
        New folder.
    model : str
        Of `KINDS`.
    n : int
        Voxels of grey and white matter of each head, about.
    seed : int

    Returns
    -------
    dict
        Label of the participant -> name of the fault.
    """
    folder.mkdir(parents=True)
    description = {"Name": "Simulated heads with faults", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    protocol = protocol_of(model, seed)
    faults = image_faults(get_model(model), protocol)
    labels = {f"{k + 1:02d}": what for k, what in enumerate(faults)}
    for k, (label, what) in enumerate(labels.items()):
        # One protocol, hence one certificate.
        _write_head(folder, f"sub-{label}", model, protocol, faults[what], n, seed + k)
    return labels


def _write_head(folder: Path, name: str, model: str, believed: Any, fault: ImageFault, n: int, seed: int) -> None:
    """Write one head with its truth."""
    kind, removed = KINDS[model], fault.voxels.removed
    phantom = slab_of_head(n, seed)
    neurites = neurite_parameters(phantom, np.random.default_rng((seed, 3))) if model == "noddi" else None
    head, rng = Head(phantom, neurites, seed), np.random.default_rng((seed, 4))
    images = magnitudes(head, kind, believed, fault, rng)
    if removed is not None and kind == "dwi":
        believed, kept = without(believed, removed)
        images = images[..., kept]
    write_series(folder / name, {kind: images}, phantom.affine, believed if kind == "dwi" else None)
    if removed is not None and kind != "dwi":
        file = sorted((folder / name / "anat").glob("*.nii.gz"))[removed]
        file.unlink()
        Path(str(file).replace(".nii.gz", ".json")).unlink()
    if fault.voxels.scale != 1:
        _rescale(folder / name, fault.voxels.scale)
    truth = folder / TRUTH_FOLDER / name
    factor = signals.inversion_recovery_signal(phantom)[1]
    write_truth(truth, simulated_maps(phantom, factor, neurites), phantom.affine)
    tissues = ("anat/{}_dseg", phantom.dseg.astype(np.float64), {"Description": TISSUES})
    write_truth(truth, [tissues], phantom.affine)


def magnitudes(head: Head, kind: str, believed: Acquisition, fault: ImageFault, rng: np.random.Generator) -> Array:
    """Return magnitudes with a fault, (x, y, z, n), before any scaling."""
    phantom, voxels = head.phantom, fault.voxels
    # First, so that every fault meets the same noise.
    shape = (*phantom.dseg.shape, believed.n_measurements)
    noise = [_noise(shape, fault.correlation, rng) for _ in range(2)]
    actual = voxels.protocol(believed, rng) if voxels.protocol else believed
    clean = head.signal(actual)
    reference = signals.without_diffusion(phantom) if kind == "dwi" else signals.GAIN * phantom.parameters["density"]
    sigma = signals.noise_level(kind, phantom, reference)
    # Faults of voxels are sized for this amplitude.
    unit = AMPLITUDE / (sigma * signals.SNR[kind])
    if voxels.change:
        clean[phantom.brain] = voxels.change(unit * clean[phantom.brain], actual, rng) / unit
    if fault.before:
        clean = fault.before(clean, float(phantom.affine[0, 0]), rng)
    factor = 1.0 if fault.noise is None else fault.noise(shape[3], rng)
    real, imaginary = (voxels.noise_factor * sigma * factor * part for part in noise)
    measured = np.hypot(clean + real, imaginary)
    if voxels.after:
        flat = unit * measured.reshape(-1, measured.shape[3])
        measured = voxels.after(flat, believed, rng).reshape(measured.shape) / unit
    return measured if fault.after is None else fault.after(measured, believed, rng)


def _noise(shape: tuple[int, ...], correlation: float, rng: np.random.Generator) -> Array:
    """Return noise of standard deviation one, smoothed within each image by a Gaussian of that many voxels."""
    noise = rng.standard_normal(shape)
    if not correlation:
        return noise
    noise = gaussian_filter(noise, (correlation, correlation, correlation, 0), mode="wrap")
    return np.asarray(noise / noise.std())


def _rescale(folder: Path, scale: float) -> None:
    """Multiply the images of a participant, which are then stored as single precision."""
    for path in folder.rglob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image((scale * image.get_fdata()).astype(np.float32), image.affine), path)


def rates_of_run(out: Path, data: Path, model: str) -> Iterator[tuple[str, str, dict[str, Rates]]]:
    """Yield participant, estimator and parameter -> rates of every fit of a model in an output folder of the app.

    Voxels of grey and white matter that were fitted count, and parameters that have a range but the amplitude, whose
    unit is arbitrary. A participant that the app refuses has no fit.
    """
    for path in record_files(out):
        record = read_record(path)
        for fit in record.fits:
            if fit.model == model:
                yield record.subject, fit.estimator, _rates_of_fit(out, data / TRUTH_FOLDER, record, fit)


def _rates_of_fit(out: Path, truth_dir: Path, record: SubjectRecord, fit: FitRecord) -> dict[str, Rates]:
    like, fitted, usable, _ = fit_masks(out, record, fit)
    certificate = record.truth_of(fit)
    if certificate is None or certificate.trust is None:
        return {}
    marked = ~usable | (read(out / certificate.trust, like) == Trust.WIDE)
    tissue = read(truth_dir / f"sub-{record.subject}" / "anat" / f"sub-{record.subject}_dseg.nii.gz", like)
    counted = fitted & np.isin(tissue, (1, 2))
    files = {item.parameter: item for item in fit.maps}
    found = {}
    judged = {p.name for p in get_model(fit.model).parameters[1:]}
    for item in certificate.maps:
        name = true_map(truth_dir, files[item.parameter].estimate)
        if name is None or item.parameter not in judged:
            continue
        truth, estimate, std, low, high = (
            read(file, like)[counted].astype(np.float64)
            for file in (
                name, out / files[item.parameter].estimate, out / files[item.parameter].std,
                out / item.truth_low, out / item.truth_high,
            )
        )  # fmt: skip
        found[item.parameter] = rates_of(truth, estimate, std, marked[counted], (truth >= low) & (truth <= high))
    return found
