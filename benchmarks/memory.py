"""Peak memory and time of a fit of a whole image by number of voxels.

An image of simulated signals is written, uncompressed and as 16-bit integers, to a temporary folder and fitted as the
app does it (`qmri_bidsapp.fitting.series.fit_series`), each number of voxels in a process of its own.

    python benchmarks/memory.py                     # 256 x 256 x 180 x 100, 2.4 GB on disk
    python benchmarks/memory.py --shape 64 64 40 --voxels 1e4 1e5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil

from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.core.acquisition import Acquisition, MultiEcho
from qmri_bidsapp.evaluation.standards import shells, simulate
from qmri_bidsapp.fitting.choice import choose
from qmri_bidsapp.registry import get_estimator, get_model

#: Number of distinct simulated voxels, which the image repeats.
N_DISTINCT = 65_536
#: Sampling interval of the memory, s.
INTERVAL = 0.02


def protocol(model: str, n_volumes: int) -> tuple[str, Acquisition]:
    """Return the BIDS suffix and the protocol of a series of `n_volumes`."""
    if model == "t2":
        return "MESE", MultiEcho(tuple(np.linspace(0.005, 0.3, n_volumes).tolist()))
    n_b0 = max(1, n_volumes // 10)
    return "dwi", shells(n_b0, (1000.0, n_volumes - n_b0))


def write_image(path: Path, shape: tuple[int, int, int], model: str, acquisition: Acquisition) -> None:
    """Write simulated signals as a NIfTI image, volume by volume."""
    values = np.rint(simulate(get_model(model), acquisition, N_DISTINCT)).astype(np.int16)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*shape, acquisition.n_measurements))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for volume in values.T:
            np.resize(volume, int(np.prod(shape))).tofile(file)


def first_voxels(shape: tuple[int, int, int], n_voxels: int) -> np.ndarray:
    """Return a mask (x, y, z) of that many voxels: whole slices, as a brain fills them, from the lowest."""
    return (np.arange(np.prod(shape)) < n_voxels).reshape(shape, order="F")


def measure(image: str, shape: tuple[int, int, int], model: str, n_voxels: int, threads: int) -> dict[str, float]:
    """Fit; return seconds and peak memory (GB): resident, and of it what is no page of the image file."""
    import torch

    from qmri_bidsapp.fitting.series import fit_series
    from qmri_bidsapp.images.volumes import open_series

    torch.set_num_threads(threads)
    kind, acquisition = protocol(model, nib.load(image).shape[3])
    ((_, name),), _ = choose(kind, acquisition, models=(model,), estimators=("auto",))
    estimator = get_estimator(name)(get_model(model))
    peak, done = {"resident": 0, "private": 0}, threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not done.wait(INTERVAL):
            memory = process.memory_info()
            peak["resident"] = max(peak["resident"], memory.rss)
            peak["private"] = max(peak["private"], memory.rss - memory.shared)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    maps = fit_series(estimator, open_series(image)[0], first_voxels(shape, n_voxels), acquisition).maps
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    assert len(maps.status) == n_voxels
    sizes = {f"{key}_gb": round(value / 1e9, 2) for key, value in peak.items()}
    return {"voxels": n_voxels, "seconds": round(seconds, 2), "voxels_per_second": round(n_voxels / seconds), **sizes}


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("t2", "tensor"), default="t2")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 180), metavar="N")
    parser.add_argument("--volumes", type=int, default=100)
    parser.add_argument(
        "--voxels", type=float, nargs="+", help="default: 1e4, 1e5, 1e6, 1e7 and all, up to the size of the image"
    )
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--folder", type=Path, help="folder of the temporary image")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shape, n_all = tuple(arguments.shape), int(np.prod(arguments.shape))
    numbers = [int(n) for n in arguments.voxels or (1e4, 1e5, 1e6, 1e7, n_all) if n <= n_all]
    rows = []
    print(
        f"Model {arguments.model}, image {shape} x {arguments.volumes}, {arguments.threads} threads, "
        f"load before {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| voxels | seconds | voxels/s | peak resident GB | thereof private GB |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        image = Path(folder) / "series.nii"
        write_image(image, shape, arguments.model, protocol(arguments.model, arguments.volumes)[1])
        for n_voxels in numbers:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (str(image), shape, arguments.model, n_voxels, arguments.threads))
            rows.append(row)
            print(
                "| {voxels:,} | {seconds:.1f} | {voxels_per_second:,} | {resident_gb:.2f} | {private_gb:.2f} |".format(
                    **row
                ),
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
