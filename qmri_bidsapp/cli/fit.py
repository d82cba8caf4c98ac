"""``qmri fit``: maps from images without BIDS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.errors import UsageError

DESCRIPTION = """
Fit a model to images that are not in BIDS, as the BIDS App does after preprocessing: the images must be aligned, and
diffusion images denoised if they are to be. Writes maps, standard deviations, a status per voxel and, unless
--no-certificate is given, the expected bias, the 5 to 95 % range of the truth and flags of voxels that no simulated
tissue resembles.
"""
EXAMPLES = """
examples:
  qmri fit t2 echo1.nii.gz echo2.nii.gz echo3.nii.gz --echo-times 0.0125 0.025 0.05 --mask brain.nii.gz --out maps
  qmri fit noddi dwi.nii.gz --bvals dwi.bval --bvecs dwi.bvec --mask brain.nii.gz --out maps
  qmri fit vfa flip1.nii flip2.nii --flip-angles 3 15 --repetition-times 0.015 0.015 --covariate b1=b1.nii --out maps
"""
#: Option -> parameter of `qmri_bidsapp.fit`, for settings with one number per image.
_BY_IMAGE = {
    "--echo-times": ("echo_time", "s"),
    "--inversion-times": ("inversion_time", "s"),
    "--repetition-times": ("repetition_time", "s"),
    "--preparation-times": ("preparation_time", "s"),
    "--flip-angles": ("flip_angle", "degree"),
}


def add_parser(commands: Any) -> None:
    """Add the parser of ``qmri fit``."""
    parser = commands.add_parser(
        "fit",
        help="fit a model to images without BIDS",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="see `qmri models`")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="one 4-D image, or 3-D ones in order")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the maps; made if missing")
    parser.add_argument("--prefix", default="", help="start of every file name, e.g. sub-01_")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="voxels above zero are fitted (default: all)")
    protocol = parser.add_argument_group("protocol, one number per image")
    for option, (name, unit) in _BY_IMAGE.items():
        protocol.add_argument(option, dest=name, type=float, nargs="+", metavar=unit.upper(), help=unit)
    protocol.add_argument(
        "--mt-pulse", dest="mt_pulse", type=int, choices=(0, 1), nargs="+", help="1 where an MT pulse was on"
    )
    protocol.add_argument("--signed", action="store_true", default=None, help="inversion-recovery images have a sign")
    protocol.add_argument("--bvals", type=Path, metavar="FILE", help="b-values, s/mm2")
    protocol.add_argument("--bvecs", type=Path, metavar="FILE", help="directions, FSL convention")
    protocol.add_argument("--small-delta", type=float, metavar="S", help="gradient pulse duration, s")
    protocol.add_argument("--large-delta", type=float, metavar="S", help="gradient pulse separation, s")
    fitting = parser.add_argument_group("fit")
    fitting.add_argument("--estimator", default="auto", help="see `qmri models` (default: the one that the app uses)")
    fitting.add_argument("--weights", type=Path, metavar="DIR", help="weights of a trained estimator")
    fitting.add_argument("--noise-std", metavar="FILE|NUMBER", help="standard deviation of the noise of one image")
    fitting.add_argument("--floor-removed", action="store_true", help="the noise floor of the images was removed")
    fitting.add_argument(
        "--covariate", action="append", default=[], metavar="NAME=FILE", help="map of a covariate, e.g. b1=b1.nii"
    )
    fitting.add_argument("--no-certificate", action="store_true", help="write no bias, range and flags")
    fitting.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    fitting.add_argument("--seed", type=seed, default=0, help="of the estimator (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Fit, write the maps, and print medians."""
    import numpy as np

    from qmri_bidsapp.api import fit

    settings = {name: getattr(arguments, name) for name, _ in _BY_IMAGE.values()}
    settings |= {name: getattr(arguments, name) for name in ("signed", "bvals", "bvecs", "small_delta", "large_delta")}
    if arguments.mt_pulse is not None:
        settings["mt_pulse"] = [bool(state) for state in arguments.mt_pulse]
    images = arguments.images
    maps = fit(
        arguments.model,
        [str(name) for name in images] if len(images) > 1 else images[0],
        mask=arguments.mask,
        estimator=arguments.estimator,
        weights=arguments.weights,
        noise_std=_number_or_file(arguments.noise_std),
        floor_removed=arguments.floor_removed,
        covariates=_pairs(arguments.covariate),
        device=arguments.device,
        seed=arguments.seed,
        **settings,
    )
    with_trust = not arguments.no_certificate and maps.has_certificate
    written = maps.to_nifti(arguments.out, arguments.prefix, with_trust=with_trust)
    counts = ", ".join(f"{n} {name}" for name, n in maps.fit.maps.counts().items())
    print(f"{maps.estimator.model.title} by {maps.estimator.name}: {int(maps.mask.sum())} voxels ({counts})")
    for parameter in (p for p in maps.parameters if p.saved):
        print(f"  {parameter.name:<20} median {np.nanmedian(maps[parameter.name]):.4g} {parameter.unit}")
    if with_trust:
        print(f"  usable: {100 * maps.usable[maps.mask].mean():.1f} % of the voxels")
    print(f"{len(written)} images in {arguments.out}")


def _number_or_file(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _pairs(given: list[str]) -> dict[str, Path]:
    """Return name -> file of ``NAME=FILE`` options."""
    pairs = {}
    for item in given:
        name, sign, file = item.partition("=")
        if not (name and sign and file):
            raise UsageError(f"--covariate needs NAME=FILE, got {item!r}.")
        pairs[name] = Path(file)
    return pairs
