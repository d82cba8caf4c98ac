"""Time and error of MP-PCA on a diffusion series of the demo, beside DIPY's in the same run.

    OMP_NUM_THREADS=1 python benchmarks/denoising.py

Both on one thread, CPU time. The root-mean-square error, in units of the noise, is over the brain, against the expected
magnitude of the signal without noise. The noise is the median over grey and white matter, relative to the truth; ours
is that of the real and imaginary part, DIPY's that of magnitudes.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
import torch
from dipy.denoise.localpca import mppca as dipy_mppca
from scipy.ndimage import binary_dilation

from qmri_bidsapp.core.rice import rice_moments
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.dataset import SERIES_VOXEL
from qmri_bidsapp.demo.phantom import make_head
from qmri_bidsapp.preprocess.mppca import mppca, sigma_of_magnitudes

#: Of `preprocess.dwi`: the mask grows by as much as alignment may move the brain.
DILATION = 2


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=42, help="slices in the middle of the head; all have 42")
    number = parser.parse_args().slices
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    head = make_head(2, SERIES_VOXEL, seed=0)
    magnitude, signal = signals.diffusion(head, signals.gradient_table(rng), rng)
    sigma = signals.noise_level("dwi", head, signal[..., 0])
    first = (magnitude.shape[2] - number) // 2
    part = slice(first, first + number)
    series = np.ascontiguousarray(magnitude[:, :, part], dtype=np.float32)
    expected = sigma * rice_moments(torch.from_numpy(signal[:, :, part] / sigma))[0].numpy()
    brain = np.isin(head.dseg[:, :, part], (1, 2, 3))
    inside = binary_dilation(brain, iterations=DILATION)
    print(f"{series.shape}, {inside.sum()} voxels, load before {os.getloadavg()[0]:.1f}\n")
    print("| program | seconds | RMSE, brain | noise, grey and white matter |\n| --- | ---: | ---: | ---: |")

    tissue = np.isin(head.dseg[:, :, part], (1, 2))
    methods = {
        "qmri_bidsapp": lambda: mppca(series, inside),
        "DIPY": lambda: dipy_mppca(series, mask=inside, patch_radius=2, return_sigma=True, suppress_warning=True),
    }
    for name, method in methods.items():
        start = time.process_time()
        denoised, noise = method()[:2]
        seconds = time.process_time() - start
        if name == "qmri_bidsapp":
            noise = sigma_of_magnitudes(denoised, noise)
        error = np.sqrt(np.mean((denoised - expected)[brain] ** 2)) / sigma
        print(f"| {name} | {seconds:.1f} | {error:.4f} | {np.median(noise[tissue]) / sigma:.3f} |", flush=True)


if __name__ == "__main__":
    main()
