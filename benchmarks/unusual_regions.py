"""False alarms per head and detection of the demo's lesion by the search for unusual regions.

    python benchmarks/unusual_regions.py --heads 120 --json unusual.json

Heads are those of ``qmri demo``, each with its own anatomy and variation within tissues, one per seed. Their maps get
Gaussian errors in place of a fit: independent ones, or smooth ones as interpolation and denoising leave. False alarms
are counted in heads without a lesion, over all maps of a head together; detection in heads with one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import beta

from qmri_bidsapp.demo.dataset import SERIES_VOXEL
from qmri_bidsapp.demo.phantom import PhantomHead, make_head
from qmri_bidsapp.fitting.unusual import Scan, find_unusual

WHITE_MATTER = 2
#: Standard deviation of the error of each map (fraction; mm2/s; s) in the first setting.
ERRORS = {"fraction": 0.03, "diffusivity": 0.12e-3, "t1": 0.03, "t2": 0.004}
#: Setting -> factor of the errors, and their smoothness (standard deviation, voxels).
SETTINGS = {"errors": (1.0, 0.0), "errors doubled": (2.0, 0.0), "errors smooth": (1.0, 0.6)}
#: A region counts as the lesion if its centre is within this distance of the lesion's centre, mm.
NEAR = 13.5


def scans(head: PhantomHead, setting: str, seed: int, n_maps: int) -> dict[str, Scan]:
    """Return the outcome of the search in each map of a head."""
    rng, (factor, width) = np.random.default_rng(seed), SETTINGS[setting]
    found = {}
    for name, size in ERRORS.items():
        truth = head.parameters[name]
        noise = gaussian_filter(rng.standard_normal(truth.shape), width) if width else rng.standard_normal(truth.shape)
        std = np.full(truth.shape, factor * size)
        estimate = truth + std * noise / noise.std()
        usable = head.brain
        found[name] = find_unusual(estimate, std, usable, head.dseg, head.affine, label=WHITE_MATTER, n_maps=n_maps)
    return found


def is_lesion(head: PhantomHead, centre: tuple[float, float, float]) -> bool:
    """Return whether a region is the lesion."""
    where = head.affine[:3, :3] @ np.argwhere(head.lesion).mean(axis=0) + head.affine[:3, 3]
    return bool(np.linalg.norm(where - centre) < NEAR)


def rate(hits: list[bool]) -> dict[str, float]:
    """Return a rate with its 95 % Clopper-Pearson interval."""
    n, k = len(hits), sum(hits)
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {"n": n, "hits": k, "rate": k / n, "low": low, "high": high}


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=120)
    parser.add_argument("--lesions", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1000, help="of the first head")
    parser.add_argument("--maps", type=int, default=len(ERRORS), help="maps per head that the rate is stated for")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    alarms: dict[str, list[bool]] = {name: [] for name in SETTINGS}
    found: dict[str, dict[str, list[bool]]] = {name: {} for name in SETTINGS}
    others: dict[str, list[bool]] = {name: [] for name in SETTINGS}
    for seed in range(args.seed, args.seed + args.heads):
        head = make_head(1, SERIES_VOXEL, seed=seed)
        for setting in SETTINGS:
            alarms[setting].append(any(scan.regions for scan in scans(head, setting, seed, args.maps).values()))
    for seed in range(args.seed, args.seed + args.lesions):
        head = make_head(2, SERIES_VOXEL, seed=seed)
        for setting in SETTINGS:
            by_map = scans(head, setting, seed, args.maps)
            hits = {
                name: [is_lesion(head, region.cluster.centre) for region in scan.regions]
                for name, scan in by_map.items()
            }
            for name in ("fraction", "diffusivity"):
                found[setting].setdefault(name, []).append(any(hits[name]))
            found[setting].setdefault("either", []).append(any(hits["fraction"] + hits["diffusivity"]))
            others[setting].append(any(not hit for part in hits.values() for hit in part))
    table = {
        setting: {
            "false alarms": rate(alarms[setting]),
            **{f"lesion in {name}": rate(part) for name, part in found[setting].items()},
            "elsewhere, with a lesion": rate(others[setting]),
        }
        for setting in SETTINGS
    }
    for setting, rows in table.items():
        for name, row in rows.items():
            print(
                f"{setting:16s} {name:26s} {row['hits']:3d} of {row['n']:3d}: {row['rate']:.3f} "
                f"({row['low']:.3f} to {row['high']:.3f})"
            )
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
