"""Coverage of intervals and ranges of simulated heads that went through the whole app, by setting and tissue.

Each head is written as a BIDS data set without a T1w (IRT1, MESE and dwi of the demo's protocols), mapped by qmri-bids
in a process of its own, and compared with its truth as by `qmri demo --check`. Heads with an even number obey NODDI,
the others the spherical mean technique; none has a lesion. A finished head is not run again.

    python benchmarks/pipeline_coverage.py --heads 20 --voxel 2.5 --out campaign > coverage.md
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.demo import signals
from qmri_bidsapp.demo.dataset import write_series, write_truth
from qmri_bidsapp.demo.neurites import neurite_parameters
from qmri_bidsapp.demo.phantom import CORNER, PhantomHead, make_head, tissue_fractions, to_mni
from qmri_bidsapp.demo.truth import TISSUES, true_maps
from qmri_bidsapp.evaluation.truth.agreement import MIN_VOXELS
from qmri_bidsapp.evaluation.truth.comparison import compare_run
from qmri_bidsapp.evaluation.truth.files import TRUTH_FOLDER

N_COILS = 8
#: Finer voxels within slices from which ringing is made.
FINER = 4
#: Acquired part of k-space with partial Fourier.
PARTIAL = 0.75
#: SENSE-like: voxels half a field of view apart share noise, with correlation 2c / (1 + c^2); relative noise at the
#: centre.
SHARED, CENTRE_GAIN = 0.25, 2.0
#: Standard deviation of the pose of each volume but the first, about and along each axis: degree, mm.
ROTATION, SHIFT = 0.7, 0.7
#: Issue 18: shares of voxels that intervals and ranges must hold, percent.
GOALS = {"interval": (93.0, 97.0), "range": (87.0, 93.0)}
HEADER = ("setting", "heads", "model", "where", "usable, %", "in interval, %", "in range, %", "maps outside")


@dataclass(frozen=True)
class Setting:
    """What happens to the signals; `snr` is that of tissue at full signal, of one coil, without partial Fourier."""

    snr: float = 25.0
    noise: str = "one coil"
    ringing: bool = False
    partial: bool = False
    motion: bool = False


SETTINGS = {
    "snr10": Setting(10),
    "snr15": Setting(15),
    "snr25": Setting(25),
    "snr40": Setting(40),
    "sum-of-squares": Setting(noise="sum of squares"),
    "sense": Setting(noise="sense"),
    "ringing": Setting(ringing=True),
    "partial-fourier": Setting(ringing=True, partial=True),
    "motion": Setting(motion=True),
    "all": Setting(noise="sense", ringing=True, motion=True),
}


def truncate(fine: np.ndarray, factor: int) -> np.ndarray:
    """Return the image that the centre of k-space gives, on voxels larger by `factor` along the first two axes."""
    for axis in (0, 1):
        n = fine.shape[axis]
        frequency = np.fft.fftfreq(n)
        kept = np.abs(np.fft.fftfreq(n, 1 / n)) < n / factor / 2
        # The centre of a large voxel lies between the fine ones.
        k_space = np.moveaxis(np.fft.fft(fine, axis=axis), axis, -1) * np.exp(1j * np.pi * frequency * (factor - 1))
        small = np.zeros((*k_space.shape[:-1], n // factor), complex)
        small[..., np.rint(frequency[kept] * n).astype(int)] = k_space[..., kept] / factor
        fine = np.moveaxis(np.fft.ifft(small, axis=-1).real, -1, axis)
    return fine


def ringing(head: PhantomHead, seed: int, voxel: float, signal: np.ndarray) -> np.ndarray:
    """Return what truncation adds to a series, (x, y, z, n): every tissue's mean signal times the ringing of its shape.

    The shape comes from voxels finer within slices. Truncation is linear, and the truth of each voxel stays exact.
    """
    nx, ny, nz = signal.shape[:3]
    small = voxel / FINER
    affine = np.diag([small, small, voxel, 1.0])
    affine[:3, 3] = CORNER + np.array([small, small, voxel]) / 2
    shape = (nx * FINER, ny * FINER, nz)
    fine = tissue_fractions(to_mni(affine, shape, np.random.default_rng((seed, 1, 0))), small)
    coarse = np.stack([head.fractions[name].ravel() for name in fine], axis=-1)
    means = np.linalg.lstsq(coarse, signal.reshape(-1, signal.shape[-1]), rcond=None)[0]
    added = np.zeros_like(signal)
    for values, mean in zip(fine.values(), means, strict=True):
        box = values.reshape(nx, FINER, ny, FINER, nz).mean(axis=(1, 3))
        added += (truncate(values, FINER) - box)[..., None] * mean
    return added


def poses(n: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rotation matrix and shift (mm) of each volume; the first has not moved."""
    angles, shifts = ROTATION * rng.standard_normal((n, 3)), SHIFT * rng.standard_normal((n, 3))
    angles[0] = shifts[0] = 0
    return [(Rotation.from_euler("xyz", a, degrees=True).as_matrix(), s) for a, s in zip(angles, shifts, strict=True)]


def move(series: np.ndarray, pose: Sequence[tuple[np.ndarray, np.ndarray]], voxel: float) -> np.ndarray:
    """Return a series whose volumes have moved about the centre of the image."""
    centre = (np.array(series.shape[:3]) - 1) / 2
    moved = np.empty_like(series)
    for number, (rotation, shift) in enumerate(pose):
        back = rotation.T
        offset = centre - back @ (centre + shift / voxel)
        moved[..., number] = affine_transform(series[..., number], back, offset, order=3)
    return moved


def magnitudes(signal: np.ndarray, sigma: float, setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitudes that a scanner gives, (x, y, z, n); `sigma` is that of real and imaginary part."""

    def noise() -> np.ndarray:
        return sigma * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))

    axes = [np.linspace(-1, 1, n) for n in signal.shape[:3]]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))[..., None]
    if setting.noise == "sum of squares":
        angles = 2 * np.pi * np.arange(N_COILS) / N_COILS
        coils = [np.exp(-((position[0] - np.cos(a)) ** 2) - (position[1] - np.sin(a)) ** 2) for a in angles]
        total = np.sqrt(np.sum(np.square(coils), axis=0))
        return np.sqrt(sum(np.abs(signal * coil / total + noise()) ** 2 for coil in coils))
    image = noise()
    if setting.noise == "sense":
        image = (image + SHARED * np.roll(image, signal.shape[1] // 2, axis=1)) / np.sqrt(1 + SHARED**2)
        image *= 1 + (CENTRE_GAIN - 1) * np.exp(-4 * (position**2).sum(0))
    image += signal
    if setting.partial:
        k_space = np.fft.fftshift(np.fft.fft(image, axis=1), axes=1)
        k_space[:, : round((1 - PARTIAL) * signal.shape[1])] = 0
        image = np.fft.ifft(np.fft.ifftshift(k_space, axes=1), axis=1)
    return np.abs(image)


def write_head(folder: Path, number: int, voxel: float, setting: Setting) -> None:
    """Write one head as a BIDS data set with its truth."""
    rng = np.random.default_rng((number, 3))
    head = make_head(1, voxel, seed=number)
    neurites = neurite_parameters(head, np.random.default_rng((number, 1, 2))) if number % 2 == 0 else None
    acquisition = signals.gradient_table(rng)

    def diffusion(protocol: Diffusion) -> np.ndarray:
        """Return the signal without noise; the same generator gives the same fibres."""
        return signals.diffusion(head, protocol, np.random.default_rng((number, 4)), neurites)[1]

    recovery, factor = signals.inversion_recovery_signal(head)
    still = {"IRT1": recovery, "MESE": signals.multi_echo_signal(head), "dwi": diffusion(acquisition)}
    density = signals.GAIN * head.parameters["density"]
    reference = {"IRT1": density, "MESE": density, "dwi": still["dwi"][..., 0]}
    images = {}
    for kind, clean in still.items():
        signal = clean + ringing(head, number, voxel, clean) if setting.ringing else clean
        if setting.motion:
            pose = poses(signal.shape[-1], rng)
            if kind == "dwi":
                # In the head's own axes the gradients turn the other way.
                turned = [
                    np.asarray(g) @ rotation for g, (rotation, _) in zip(acquisition.direction, pose, strict=True)
                ]
                directions = tuple(tuple(float(x) for x in g) for g in turned)
                signal = signal + diffusion(Diffusion(acquisition.b_value, directions)) - clean
            signal = move(signal, pose, voxel)
        sigma = signals.noise_level(kind, head, reference[kind]) * signals.SNR[kind] / setting.snr
        images[kind] = magnitudes(signal, sigma, setting, rng)
    extra = {"SimulatedSNR": setting.snr, **({"PartialFourier": PARTIAL} if setting.partial else {})}
    write_series(folder / "sub-01", images, head.affine, acquisition, extra)
    truth = folder / TRUTH_FOLDER / "sub-01"
    write_truth(truth, true_maps(head, factor, neurites, still["dwi"], acquisition), head.affine)
    write_truth(truth, [("anat/{}_dseg", head.dseg.astype(float), {"Description": TISSUES})], head.affine)
    description = {"Name": "Simulated head", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description))


def run_head(folder: Path, number: int, name: str, voxel: float, models: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the comparison of one head, from its file if it is finished."""
    done, options = folder / "check.json", {"voxel": voxel, "models": list(models)}
    if done.is_file():
        found = json.loads(done.read_text())
        if found["options"] != options:
            raise SystemExit(f"{done} was made with {found['options']}, not {options}: name another --out.")
        return found["maps"]
    shutil.rmtree(folder, ignore_errors=True)
    data, out, work, log = (folder / part for part in ("data", "out", "work", "log.txt"))
    write_head(data, number, voxel, SETTINGS[name])
    command = [sys.executable, "-m", "qmri_bidsapp.cli.app.run", data, out, "participant", "-w", work]
    command += ["--skip-bids-validation", "--nprocs", "1", *(["--models", *models] if models else [])]
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=file).returncode
    if code:
        raise SystemExit(f"qmri-bids ended with {code} for head {number} of {name}: see {log}.")
    maps = [row.to_dict() for row in compare_run(out, data / TRUTH_FOLDER).maps]
    part = done.with_suffix(".part")
    part.write_text(json.dumps({"options": options, "maps": maps}, indent=1))
    for used in (data, out, work):
        shutil.rmtree(used)
    part.replace(done)
    return maps


def table(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the cells of `HEADER`, one row for each setting, model and tissue.

    Voxels of all heads count alike. Coverage is that of the lowest and the highest map; a map counts as outside if its
    interval or range leaves `GOALS`, with at least `MIN_VOXELS` voxels.
    """

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["setting"], row["model"], row["region"]

    cells = []
    order = list(SETTINGS)
    for (setting, model, region), group in groupby(
        sorted(rows, key=lambda r: (order.index(r["setting"]), key(r))), key
    ):
        found = sorted(group, key=lambda row: row["parameter"])
        shares: dict[str, list[float]] = {"interval": [], "range": []}
        outside = n_maps = 0
        for _, same in groupby(found, lambda row: row["parameter"]):
            heads, wrong, judged = list(same), False, False
            for what, (low, high) in GOALS.items():
                n = sum(row[f"n_{what}"] for row in heads)
                if n < MIN_VOXELS:
                    continue
                share = sum(100 * row[f"n_{what}"] * (row[f"{what}_coverage"] or 0) for row in heads) / n
                shares[what].append(share)
                judged, wrong = True, wrong or not low <= share <= high
            n_maps, outside = n_maps + judged, outside + wrong
        usable = 100 * sum(row["n_usable"] for row in found) / max(1, sum(row["n_voxels"] for row in found))
        spans = [f"{min(v):.1f} to {max(v):.1f}" if v else "" for v in shares.values()]
        n_heads = len({row["head"] for row in found})
        cells.append((setting, str(n_heads), model, region, f"{usable:.1f}", *spans, f"{outside} of {n_maps}"))
    return cells


def main() -> None:
    """Run the heads that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=20, help="per setting")
    parser.add_argument("--voxel", type=float, default=2.5, help="mm")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="default: those of the app")
    parser.add_argument("--out", type=Path, required=True, help="folder of finished heads")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.settings:
        for number in range(arguments.heads):
            folder = arguments.out.resolve() / name / f"head-{number:02d}"
            maps = run_head(folder, number, name, arguments.voxel, arguments.models)
            rows += [{**row, "setting": name, "head": number} for row in maps]
            print(f"{name}, head {number}: done", file=sys.stderr, flush=True)
    for line in (HEADER, ("---",) * len(HEADER), *table(rows)):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
