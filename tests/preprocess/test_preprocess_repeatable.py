"""The same images give the same result, in one process and in the next."""

import hashlib
import subprocess
import sys

import nibabel as nib
import numpy as np
from scipy import ndimage

from qmri_bidsapp.preprocess.anat import correct_bias, segment_tissues
from qmri_bidsapp.preprocess.rigid import Rigid, register

SHAPE = (28, 30, 26)


def head(seed: int) -> nib.Nifti1Image:
    noise = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 2.5)
    radius = np.linalg.norm(
        (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T / np.array(SHAPE)[:, None, None, None], axis=0
    )
    inside = ndimage.gaussian_filter((radius < 0.42).astype(float), 0.7)
    data = inside * (300 + 800 * texture / texture.std() * 0.2) + noise.normal(scale=12, size=SHAPE)
    return nib.Nifti1Image(np.clip(data, 0, None).astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))


def digests() -> list[str]:
    fixed, moving = head(2), head(3)
    found: list[Rigid] = [register(fixed, moving, effort=effort) for effort in ("far", "near", "quick")]
    corrected = correct_bias(fixed)
    mask = nib.Nifti1Image((np.asarray(fixed.dataobj) > 150).astype(np.uint8), fixed.affine)
    arrays = [*(motion.matrix for motion in found), corrected.dataobj, segment_tissues(corrected, mask).dataobj]
    return [hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() for values in arrays]


def test_registration_bias_field_and_tissues_repeat_to_the_bit() -> None:
    first = digests()
    assert digests() == first
    other = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, timeout=300)
    assert other.stdout.split() == first


if __name__ == "__main__":
    print(*digests(), sep="\n")
