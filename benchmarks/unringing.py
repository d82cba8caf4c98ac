"""Error and time of removal of Gibbs ringing, beside DIPY's in the same run; partial Fourier left alone or unringed.

    OMP_NUM_THREADS=1 python benchmarks/unringing.py --head T1W

Fine images are truncated in k-space, with noise of 0.5 % of the highest intensity; the truth are their means over
voxels. Errors are relative to the highest intensity, where the truth is above a tenth of it. One thread, CPU time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from dipy.denoise.gibbs import gibbs_removal

from qmri_bidsapp.evaluation.truncation import averaged, ellipses, truncated
from qmri_bidsapp.preprocess.unringing import remove_ringing, shift_operators, unring_lines

Array = npt.NDArray[np.float32]

NOISE = 0.005
#: Objects -> length of a voxel in fine voxels. Voxels of a head of 1 x 1.33 mm become 3 x 4 mm.
FACTORS = {"ellipses": 5, "head": 3}
#: Volumes of a slice that are timed together, as of a diffusion series.
N_VOLUMES = 60


def head(path: Path) -> npt.NDArray[np.float64]:
    """Return transverse slices of a T1w, of lengths that can be truncated."""
    data = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=float)
    middle, period = data.shape[2] // 2, 2 * FACTORS["head"]
    return data[: data.shape[0] // period * period, : data.shape[1] // period * period, middle - 30 : middle + 50 : 8]


def ours(image: Array) -> Array:
    """Return slices (x, y, slice) without ringing."""
    return remove_ringing(image[..., None])[..., 0]


def peer(image: Array) -> Array:
    """Return slices without ringing, by DIPY."""
    return np.asarray(gibbs_removal(image, inplace=False), dtype=np.float32)


def both_periods(image: Array) -> Array:
    """Return slices of which 6/8 of k-space was acquired along y without ringing of either period.

    As Lee et al. (2021, Magn Reson Med 86:2733) describe it: first even and odd voxels along y, apart, since ringing
    of the cut at half of k-space alternates between every second voxel, then all.
    """
    first = np.empty_like(image)
    for start in (0, 1):
        lines = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image[:, start::2], 1, 0)))
        cleaned = unring_lines(lines.reshape(len(lines), -1), shift_operators(len(lines)))
        first[:, start::2] = np.moveaxis(cleaned.view(lines.shape).numpy(), 0, 1)
    return ours(first)


def rows(fine: npt.NDArray[np.float64], factor: int) -> list[tuple[str, str, float, float]]:
    """Return acquired part, method, root-mean-square error and median absolute error, %."""
    truth, found = averaged(fine, factor), []
    rng = np.random.default_rng(0)
    noise = NOISE * truth.max() * (rng.standard_normal(truth.shape) + 1j * rng.standard_normal(truth.shape))
    methods: dict[float, dict[str, Callable[[Array], Array]]] = {
        1.0: {"left alone": np.asarray, "qmri_bidsapp": ours, "DIPY": peer},
        0.875: {"left alone": np.asarray, "as if all were acquired": ours},
        0.75: {"left alone": np.asarray, "as if all were acquired": ours, "both periods": both_periods},
    }
    for part, group in methods.items():
        image = np.abs(truncated(fine, factor, partial_fourier=part) + noise).astype(np.float32)
        for name, method in group.items():
            error = 100 * np.abs(method(image) - truth)[truth > 0.1 * truth.max()] / truth.max()
            found.append((f"{part:g}", name, float(np.sqrt(np.mean(error**2))), float(np.median(error))))
    return found


def seconds_per_slice(method: Callable[[Array], Array], size: int) -> float:
    """Return the CPU time of one slice of one volume, s."""
    image = np.random.default_rng(0).uniform(0, 1000, (size, size, N_VOLUMES)).astype(np.float32)
    start = time.process_time()
    method(image)
    return (time.process_time() - start) / N_VOLUMES


def main() -> None:
    """Measure and print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, metavar="T1W", help="T1w image, beside the ellipses")
    path = parser.parse_args().head
    torch.set_num_threads(1)
    objects = {"ellipses": ellipses(480, 6), **({"head": head(path)} if path else {})}
    print(
        "| object | acquired part of k-space | method | RMSE, % | median error, % |\n| --- | ---: | --- | ---: | ---: |"
    )
    for name, fine in objects.items():
        for part, method, rmse, median in rows(fine, FACTORS[name]):
            print(f"| {name} | {part} | {method} | {rmse:.2f} | {median:.2f} |", flush=True)
    print(f"\nLoad before {os.getloadavg()[0]:.1f}\n")
    print("| slice | qmri_bidsapp, ms | DIPY, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for size in (48, 96, 128):

        def together(image: Array) -> Array:
            return remove_ringing(image[:, :, None])

        times = [1e3 * seconds_per_slice(method, size) for method in (together, peer)]
        print(f"| {size} x {size} | {times[0]:.2f} | {times[1]:.1f} | {times[1] / times[0]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
