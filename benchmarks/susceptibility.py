"""Fields of real EPI pairs: against each other, against a gradient-echo map, and what they correct.

Needs a BIDS data set with pairs: `fmap/*_dir-AP_epi` and `dir-PA`, or two diffusion files of opposite phase encoding;
a gradient-echo map of the same participant is compared where there is one.

    python benchmarks/susceptibility.py BIDS_DIR
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_erosion

from qmri_bidsapp.core.phase_encoding import PhaseEncoding
from qmri_bidsapp.images.volumes import load_image
from qmri_bidsapp.preprocess.field_maps import from_phase_difference, on_epi
from qmri_bidsapp.preprocess.placement import Placement
from qmri_bidsapp.preprocess.rigid import IDENTITY, Rigid
from qmri_bidsapp.preprocess.susceptibility import FieldEstimate, field_of_pair


def read(path: Path) -> tuple[nib.Nifti1Image, PhaseEncoding]:
    """Return volumes without weighting, (x, y, z, n), and their phase encoding."""
    image = load_image(path, ndim=len(nib.load(path).shape))
    if len(image.shape) == 3:
        image = nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    bval = Path(str(path).replace(".nii.gz", ".bval"))
    kept = np.loadtxt(bval).ravel() < 50 if bval.exists() else np.ones(image.shape[3], bool)
    sidecar = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())
    data = np.asarray(image.dataobj)[..., kept]
    return nib.Nifti1Image(data, image.affine), PhaseEncoding.from_sidecar(sidecar, image.shape)


def corrected(image: nib.Nifti1Image, encoding: PhaseEncoding, found: FieldEstimate, motion: Rigid) -> np.ndarray:
    """Return the mean of an image without distortion, moved back to where the head was in the first one."""
    matrix = np.linalg.inv(image.affine) @ motion.matrix @ image.affine
    mean = np.asarray(image.dataobj).mean(axis=3)
    return np.nan_to_num(Placement(matrix, encoding.displacement(found.field), encoding.axis).resample(mean))


def main() -> None:
    """Print a row for each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bids_dir", type=Path)
    arguments = parser.parse_args()
    print("| pair | s | r before | r after | error after / before | field, 95 % below, Hz |")
    print("|---|---:|---:|---:|---:|---:|")
    fields: dict[str, tuple[FieldEstimate, np.ndarray]] = {}
    for path in sorted(arguments.bids_dir.glob("sub-*/*/*_dir-AP_*.nii.gz")):
        other = Path(str(path).replace("dir-AP", "dir-PA"))
        if not other.exists():
            continue
        (up, first), (down, second) = read(path), read(other)
        start = time.perf_counter()
        found = field_of_pair(up, down, first, second)
        seconds = time.perf_counter() - start
        raw = [np.asarray(image.dataobj).mean(axis=3) for image in (up, down)]
        done = [corrected(up, first, found, IDENTITY), corrected(down, second, found, found.motion)]
        head = binary_erosion(found.determined, iterations=2)
        before, after = (np.corrcoef(a[head], b[head])[0, 1] for a, b in (raw, done))
        errors = [np.sqrt(np.mean((a - b)[head] ** 2)) for a, b in (raw, done)]
        high = np.percentile(np.abs(found.field[head]), 95)
        name = path.name.removesuffix(".nii.gz").replace("_dir-AP", "")
        row = (name, f"{seconds:.1f}", f"{before:.3f}", f"{after:.3f}", f"{errors[1] / errors[0]:.2f}", f"{high:.0f}")
        print(f"| {' | '.join(row)} |", flush=True)
        fields[name] = (found, head)
        _compare_with_map(path, up, first, found, head)
    names = list(fields)
    for k, name in enumerate(names):
        for earlier in names[:k]:
            (a, head_a), (b, head_b) = fields[earlier], fields[name]
            if earlier.split("_")[0] == name.split("_")[0] and a.field.shape == b.field.shape:
                both = head_a & head_b
                difference = a.field - b.field
                # A constant is not distinguished from a shift of the head.
                difference = np.median(np.abs(difference - np.median(difference[both]))[both])
                print(f"\n{earlier} and {name}: median difference {difference:.2f} Hz")


def _compare_with_map(
    path: Path, up: nib.Nifti1Image, encoding: PhaseEncoding, found: FieldEstimate, head: np.ndarray
) -> None:
    """Print how a field agrees with a phase difference of the participant."""
    folder = path.parents[1]
    for phase in folder.glob("fmap/*_phasediff.nii.gz"):
        sidecar = json.loads(Path(str(phase).replace(".nii.gz", ".json")).read_text())
        magnitude = load_image(str(phase).replace("phasediff", "magnitude1"), ndim=3)
        times = (sidecar["EchoTime1"], sidecar["EchoTime2"])
        field_map = from_phase_difference(load_image(phase, ndim=3, may_be_zero=True), magnitude, times)
        measured = on_epi(field_map, nib.Nifti1Image(np.asarray(up.dataobj).mean(axis=3), up.affine), encoding)
        both = head & measured.determined
        difference = np.median(np.abs(found.field - measured.field)[both])
        r = np.corrcoef(found.field[both], measured.field[both])[0, 1]
        print(f"\n{phase.name}: r {r:.3f}, median difference {difference:.2f} Hz in {both.sum()} voxels\n", flush=True)


if __name__ == "__main__":
    main()
