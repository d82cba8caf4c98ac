"""Writing the demo data set, with its truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp import __version__
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.phantom import Head, make_head
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.images.gradients import format_gradients

#: Voxel sizes, mm: T1w, and the quantitative series.
T1W_VOXEL, SERIES_VOXEL = 1.5, 4.5
README = """Demo data set of qmri_bidsapp: two simulated heads. No human data.

Tissues come from the MNI152 (ICBM 2009a) maps distributed with nilearn, with a simulated skull and scalp. Signals come
from the models of qmri_bidsapp with Rician noise; the signal-to-noise ratio in brain tissue is {snr}.
sub-02 holds a small lesion in its left white matter (intra-neurite fraction 0.60, diffusivity 1.8e-3 mm2/s) and, on the
right, a region that none of the models describes. The true maps lie in derivatives/truth. Ages and sexes are invented.
"""


def write_demo(
    out_dir: Path, *, seed: int = 0, t1w_voxel: float = T1W_VOXEL, series_voxel: float = SERIES_VOXEL
) -> Path:
    """Write a BIDS data set of two subjects.

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
        _write_top_files(out_dir)
        for index in (1, 2):
            rng = np.random.default_rng((seed, index))
            _write_subject(out_dir, index, rng, t1w_voxel, series_voxel)
    except OSError as error:
        raise OutputError(f"{out_dir} cannot be written ({error.strerror or error}).") from error
    return out_dir


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def _write_image(path: Path, data: npt.NDArray[Any], affine: npt.NDArray[np.float64], dtype: type) -> None:
    """Write an image; integers are rounded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.rint(data) if np.issubdtype(dtype, np.integer) else data
    image = nib.Nifti1Image(values.astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nib.save(image, path)


def _write_top_files(out_dir: Path) -> None:
    source = [{"Name": "qmri_bidsapp", "Version": __version__}]
    _write_json(
        out_dir / "dataset_description.json",
        {
            "Name": "Demo of qmri_bidsapp: two simulated heads",
            "BIDSVersion": "1.10.0",
            "DatasetType": "raw",
            "License": "CC0",
            "Authors": ["The qmri_bidsapp developers"],
            "GeneratedBy": source,
        },
    )
    snr = ", ".join(f"{value:g} ({kind})" for kind, value in signals.SNR.items())
    (out_dir / "README").write_text(README.format(snr=snr))
    (out_dir / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\t44\tM\n")
    levels = {"F": "female", "M": "male"}
    columns = {
        "age": {"Description": "Invented age", "Units": "year"},
        "sex": {"Description": "Invented", "Levels": levels},
    }
    _write_json(out_dir / "participants.json", columns)
    truth = out_dir / "derivatives" / "truth"
    _write_json(
        truth / "dataset_description.json",
        {
            "Name": "True maps of the demo",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": source,
        },
    )
    (truth / ".bidsignore").write_text("*_dwimap.*\n*_IEmap.*\n")
    (truth / "README").write_text("True parameters of the simulated heads, in BIDS units.\n")


def _write_subject(out_dir: Path, index: int, rng: np.random.Generator, t1w_voxel: float, series_voxel: float) -> None:
    name = f"sub-{index:02d}"
    anat, dwi = out_dir / name / "anat", out_dir / name / "dwi"
    scanner = {"Manufacturer": "Simulated", "MagneticFieldStrength": 3}
    fine = make_head(index, t1w_voxel, rng)
    _write_image(anat / f"{name}_T1w.nii.gz", signals.t1w(fine, rng), fine.affine, np.int16)
    _write_json(anat / f"{name}_T1w.json", scanner)
    head = make_head(index, series_voxel, rng)
    recovery, factor = signals.inversion_recovery(head, rng)
    for number, time in enumerate(signals.INVERSION_TIMES):
        stem = anat / f"{name}_inv-{number + 1}_IRT1"
        _write_image(stem.with_suffix(".nii.gz"), recovery[..., number], head.affine, np.int16)
        _write_json(stem.with_suffix(".json"), {**scanner, "InversionTime": time, "RepetitionTimeExcitation": 15.0})
    echoes = signals.multi_echo(head, rng)
    for number, time in enumerate(signals.ECHO_TIMES):
        stem = anat / f"{name}_echo-{number + 1}_MESE"
        _write_image(stem.with_suffix(".nii.gz"), echoes[..., number], head.affine, np.int16)
        _write_json(stem.with_suffix(".json"), {**scanner, "EchoTime": time, "RepetitionTime": 5.0})
    acquisition = signals.gradient_table(rng)
    stem = dwi / f"{name}_dwi"
    _write_image(stem.with_suffix(".nii.gz"), signals.diffusion(head, acquisition, rng), head.affine, np.int16)
    _write_json(stem.with_suffix(".json"), {**scanner, "EchoTime": signals.DWI_ECHO_TIME, "RepetitionTime": 9.2})
    # FSL's convention: the affine's determinant is positive, so that the first component is reversed.
    direction = np.asarray(acquisition.direction) * [-1, 1, 1]
    bval, bvec = format_gradients(np.asarray(acquisition.b_value), direction)
    stem.with_suffix(".bval").write_text(bval)
    stem.with_suffix(".bvec").write_text(bvec)
    _write_truth(out_dir / "derivatives" / "truth" / name, name, head, factor, fine)


def _write_truth(folder: Path, name: str, head: Head, factor: npt.NDArray[np.float64], fine: Head) -> None:
    """Write the true maps on the grid of the series, and the true brain mask on that of the T1w."""
    p, brain = head.parameters, head.brain
    maps = {
        "anat/{}_T1map": (p["t1"], "s"),
        "anat/{}_T2map": (p["t2"], "s"),
        "anat/{}_IEmap": (factor, "1"),
        "dwi/{}_model-smt_param-intrafraction_dwimap": (p["fraction"], "1"),
        "dwi/{}_model-smt_param-diffusivity_dwimap": (p["diffusivity"], "mm2/s"),
    }
    for pattern, (values, unit) in maps.items():
        path = folder / pattern.format(name)
        _write_image(path.with_suffix(".nii.gz"), np.where(brain, values, np.nan), head.affine, np.float32)
        _write_json(path.with_suffix(".json"), {"Units": unit, "SkullStripped": True})
    labels = {
        "anat/{}_desc-series_dseg": (head.dseg, head.affine),
        "anat/{}_desc-brain_mask": (fine.brain, fine.affine),
        "dwi/{}_desc-brain_mask": (brain, head.affine),
        "dwi/{}_label-lesion_mask": (head.lesion, head.affine),
        "dwi/{}_label-unmodelled_mask": (head.unmodelled, head.affine),
    }
    for pattern, (region, affine) in labels.items():
        path = folder / pattern.format(name)
        if region.any():
            _write_image(path.with_suffix(".nii.gz"), region, affine, np.uint8)
            _write_json(path.with_suffix(".json"), {"SkullStripped": True})
