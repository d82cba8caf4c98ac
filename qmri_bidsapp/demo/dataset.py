"""Write the demo data set and its truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp import __version__
from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.neurites import neurite_parameters
from qmri_bidsapp.demo.phantom import make_head
from qmri_bidsapp.demo.truth import TABLE_AXES, label_maps, true_maps
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.images.gradients import format_gradients

Affine = npt.NDArray[np.float64]

#: Voxel sizes, mm: T1w, and the quantitative series.
T1W_VOXEL, SERIES_VOXEL = 1.5, 4.5
SUBJECTS = (1, 2)
#: The subject whose diffusion is that of NODDI; the other's is that of the spherical mean technique.
NODDI_SUBJECT = 1
BIDS_VERSION = "1.10.0"
GENERATED_BY = [{"Name": "qmri_bidsapp", "Version": __version__}]
SCANNER = {"Manufacturer": "Simulated", "MagneticFieldStrength": 3}
README = """Demo data set of qmri_bidsapp: two simulated heads. No human data.

Tissues come from the MNI152 (ICBM 2009a) maps distributed with nilearn, with a simulated skull and scalp;
each subject has a pose, size and shape of its own. Signals come from the models of qmri_bidsapp, with Rician
noise. Signal-to-noise ratio: {snr}.
It is the mean signal of grey and white matter (at full recovery, at TE = 0, at b = 0) over the standard
deviation of the noise, and SimulatedSNR in the sidecars.

Diffusion is that of NODDI (Watson) in sub-01, and in sub-02 that of the two compartments of the spherical mean
technique.

sub-02 holds a small lesion in its left white matter (Abnormality 3 of Gyori et al. 2021: intra-neurite
fraction 0.60, diffusivity 1.8e-3 mm2/s) and, on the right, a region that none of the models describes: two
pools of T1 and of T2, and water that does not diffuse. The true maps lie in derivatives/truth.

Ages and sexes are invented. Seed: {seed}. The same seed and version give the same files.
"""
TRUTH_README = """True parameters of the two simulated heads, in BIDS units. `qmri demo --check OUT` compares
the maps of a run with them.

Maps lie on the grid of the quantitative series (IRT1, MESE and dwi share one) and have the names of the app's
maps, without desc. A voxel has one value of each parameter, the mean over the protons of the tissues in it; of
T1 and T2, the mean of their rates (fast exchange). So every voxel obeys the models of relaxation exactly, but
for those of label-unmodelled_mask, which have no true value (NaN).

Diffusion of sub-01 obeys NODDI, that of sub-02 the spherical mean technique: the other model has no true value
there. Tensor and kurtosis are expansions that no tissue obeys. Their true values are fits to the signals
without noise, by the same estimator as in the app (wls), of the same volumes; NaN where such a fit ends on a
bound. Tensor elements and the angles theta and phi are in the axes of the gradient table (BIDS/FSL): here
those of the world (RAS+), the first reversed.

desc-series_dseg (series) and dseg (T1w) hold the tissue of the largest volume fraction: 1 grey matter, 2
white matter, 3 CSF. anat/*_desc-brain_mask is on the grid of the T1w, dwi/*_desc-brain_mask on that of the
series.
"""


def write_demo(
    out_dir: Path, *, seed: int = 0, t1w_voxel: float = T1W_VOXEL, series_voxel: float = SERIES_VOXEL
) -> Path:
    """Write a BIDS data set of two subjects; an interrupted call leaves nothing behind.

    Parameters
    ----------
    out_dir : Path
        New or empty folder.
    seed : int
        The same seed gives the same files.
    t1w_voxel, series_voxel : float
        mm; coarser ones for quick tests.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder is not empty or cannot be written.
    """
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if any(out_dir.iterdir()):
            raise OutputError(f"{out_dir} is not empty; name a new folder.")
    except OSError as error:
        raise OutputError(f"{out_dir} cannot be written ({error.strerror or error}).") from error
    try:
        for index in SUBJECTS:
            _write_subject(out_dir, index, seed, t1w_voxel, series_voxel)
        _write_top_files(out_dir, seed)
    except BaseException as error:
        # The next command must not take an interrupted data set for a complete one.
        for item in out_dir.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"{out_dir} cannot be written ({error.strerror or error}).") from error
        raise
    return out_dir


def _write_top_files(out_dir: Path, seed: int) -> None:
    description = {
        "Name": "Demo of qmri_bidsapp: two simulated heads",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["The qmri_bidsapp developers"],
        "GeneratedBy": GENERATED_BY,
    }
    snr = ", ".join(f"{value:g} ({kind})" for kind, value in signals.SNR.items())
    (out_dir / "README").write_text(README.format(snr=snr, seed=seed))
    (out_dir / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\t44\tM\n")
    columns = {
        "age": {"Description": "Invented age", "Units": "year"},
        "sex": {"Description": "Invented sex", "Levels": {"F": "female", "M": "male"}},
    }
    _write_json(out_dir / "participants.json", columns)
    truth = out_dir / "derivatives" / "truth"
    (truth / ".bidsignore").write_text("*_dwimap.*\n*_IEmap.*\n")
    (truth / "README").write_text(TRUTH_README)
    derived = {**description, "Name": "True maps of the demo of qmri_bidsapp", "DatasetType": "derivative"}
    _write_json(truth / "dataset_description.json", derived)
    _write_json(out_dir / "dataset_description.json", description)


def _write_subject(out_dir: Path, index: int, seed: int, t1w_voxel: float, series_voxel: float) -> None:
    rng = np.random.default_rng((seed, index))
    name = f"sub-{index:02d}"
    anat = out_dir / name / "anat"
    fine = make_head(index, t1w_voxel, seed=seed)
    sequence = {"PulseSequenceType": "MPRAGE", "MRAcquisitionType": "3D", "RepetitionTimePreparation": 2.3}
    sequence |= {"EchoTime": 0.003, "InversionTime": 0.9, "FlipAngle": 9}
    _write_series(anat / f"{name}_T1w", signals.t1w(fine, rng), fine.affine, sequence)
    head = make_head(index, series_voxel, seed=seed)
    recovery, factor = signals.inversion_recovery(head, rng)
    echoes = signals.multi_echo(head, rng)
    acquisition = signals.gradient_table(rng)
    neurites = neurite_parameters(head, np.random.default_rng((seed, index, 2))) if index == NODDI_SUBJECT else None
    magnitude, signal = signals.diffusion(head, acquisition, rng, neurites)
    images = {"IRT1": recovery, "MESE": echoes, "dwi": magnitude}
    write_series(out_dir / name, images, head.affine, acquisition)
    truth = out_dir / "derivatives" / "truth" / name
    write_truth(truth, true_maps(head, factor, neurites, signal, acquisition), head.affine)
    for pattern, labels, affine, sidecar in label_maps(head, fine):
        _write_truth(truth / pattern.format(name), labels, affine, np.uint8, sidecar)


def write_series(
    folder: Path,
    images: Mapping[str, npt.NDArray[np.float64]],
    affine: Affine,
    acquisition: Diffusion | None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the quantitative series of a participant.

    Parameters
    ----------
    folder : Path
        Of the participant, whose name it has.
    images : mapping
        ``IRT1``, ``MESE`` and ``dwi``, or some of them -> (x, y, z, n) magnitudes.
    affine : ndarray
        (4, 4).
    acquisition : Diffusion
        Protocol of the diffusion series, directions in world axes; None if there is none.
    extra : mapping, optional
        More fields of every sidecar, which replace those of the demo.
    """
    anat, stem = folder / "anat", folder / "dwi" / f"{folder.name}_dwi"
    more = extra or {}
    for number, time in enumerate(signals.INVERSION_TIMES if "IRT1" in images else ()):
        sequence = {"InversionTime": time, "RepetitionTimeExcitation": 15.0, "FlipAngle": 90}
        name = f"{folder.name}_inv-{number + 1}_IRT1"
        _write_series(anat / name, images["IRT1"][..., number], affine, {**sequence, **more})
    for number, time in enumerate(signals.ECHO_TIMES if "MESE" in images else ()):
        sequence = {"EchoTime": time, "RepetitionTime": 5.0, "FlipAngle": 90}
        name = f"{folder.name}_echo-{number + 1}_MESE"
        _write_series(anat / name, images["MESE"][..., number], affine, {**sequence, **more})
    if acquisition is None:
        return
    sequence = {"EchoTime": signals.DWI_ECHO_TIME, "RepetitionTime": 9.2, "FlipAngle": 90}
    _write_series(stem, images["dwi"], affine, {**sequence, **more})
    # Adding zero turns -0 into 0.
    direction = np.asarray(acquisition.direction) * TABLE_AXES + 0.0
    bval, bvec = format_gradients(np.asarray(acquisition.b_value), direction)
    stem.with_suffix(".bval").write_text(bval)
    stem.with_suffix(".bvec").write_text(bvec)


def write_truth(
    folder: Path, maps: Iterable[tuple[str, npt.NDArray[np.float64], dict[str, str]]], affine: Affine
) -> None:
    """Write true maps, as `true_maps` yields them, to the folder of a participant in the truth."""
    for pattern, values, sidecar in maps:
        _write_truth(folder / pattern.format(folder.name), values, affine, np.float32, sidecar)


def _write_truth(stem: Path, data: npt.NDArray[Any], affine: Affine, dtype: type, sidecar: Mapping[str, str]) -> None:
    _write_image(stem, data, affine, dtype)
    _write_json(stem.with_suffix(".json"), {**sidecar, "SkullStripped": True})


def _write_series(stem: Path, data: npt.NDArray[np.float64], affine: Affine, sequence: Mapping[str, Any]) -> None:
    """Write an image as a scanner does, rounded to integers, with its sidecar."""
    kind = stem.name.rpartition("_")[2]
    _write_image(stem, np.rint(data), affine, np.int16)
    sidecar = {**SCANNER, **sequence}
    sidecar.setdefault("SimulatedSNR", signals.SNR[kind])
    _write_json(stem.with_suffix(".json"), sidecar)


def _write_image(stem: Path, data: npt.NDArray[Any], affine: Affine, dtype: type) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    # nibabel writes no time into compressed files, so that the same data give the same bytes.
    nib.save(image, stem.with_suffix(".nii.gz"))


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
