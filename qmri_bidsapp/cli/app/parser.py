"""Options of ``qmri-bids``. Nothing heavy is imported, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from qmri_bidsapp import __version__
from qmri_bidsapp.cli.arguments import Parser, words
from qmri_bidsapp.cli.resources import MEMORY_SHARE, available_cpus, available_memory_gb
from qmri_bidsapp.config import (
    DENOISING,
    IGNORED,
    LAYOUTS,
    LEVELS,
    N_FIBRES,
    PRIORS,
    STEPS,
    Config,
    make_config,
    read_toml,
)
from qmri_bidsapp.errors import UnknownLevelError

DESCRIPTION = (
    "Quantitative-MRI maps from BIDS data, each with its standard deviation and a status per voxel. Preprocesses and "
    "fits T1w, IRT1, MESE, MEGRE, VFA, MTS and dwi series, and writes maps, reports and logs to the output folder."
)
EPILOG = (
    "Exit codes: 0 success, 1 some participant failed, 16 invalid BIDS, 17 unknown analysis level, 18 "
    "nothing matched, 64 usage, 66 input missing, 73 output cannot be written, 130 interrupted."
)
#: Default folder of intermediate results. It is relative, so a later run from the same place finds it again.
WORK_DIR = "work"
#: Options that take several words, separated by spaces or commas -> prefix that a word may have.
_LISTS = {
    "participant_label": "sub-",
    "session_label": "ses-",
    "run_label": "run-",
    "skip": "",
    "ignore": "",
    "models": "",
    "estimators": "",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Its result has no entry for an option that was not given."""
    parser = Parser(
        prog="qmri-bids",
        usage="%(prog)s bids_dir output_dir {participant,group} [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
    )
    place = parser.add_argument_group("What and where")
    place.add_argument("bids_dir", help="folder of the BIDS data set")
    place.add_argument("output_dir", help="folder for the derivatives")
    place.add_argument(
        "analysis_level",
        metavar="{participant,group}",
        help="participant: maps and a report for each participant; group: tables and a report over all participants in "
        "the output folder",
    )
    several = "Separate several values by spaces or commas. Put such options after the three arguments above."
    _add_selection(parser.add_argument_group("Data", several))
    methods = parser.add_argument_group("Methods")
    _add_methods(methods)
    _add_motion(methods)
    _add_resources(parser.add_argument_group("Resources"))
    _add_running(parser.add_argument_group("Running"))
    about = parser.add_argument_group("About")
    about.add_argument("-h", "--help", action="help", help="show this text and exit")
    about.add_argument(
        "--version", action="version", version=f"qmri-bids {__version__}", help="show the version and exit"
    )
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    for name, prefix in (("participant", "sub-"), ("session", "ses-"), ("run", "run-")):
        group.add_argument(
            f"--{name}-label",
            nargs="+",
            metavar="LABEL",
            help=f"{name}s, with or without '{prefix}' (default: all)",
        )
    group.add_argument(
        "--bids-filter-file",
        metavar="FILE",
        help="JSON with pybids queries for t1w, irt1, mese, megre, vfa, mts, tb1map, dwi and the images of fmap/ (epi, "
        'phasediff, ...), such as {"dwi": {"acquisition": "hires"}}',
    )
    group.add_argument(
        "--ignore",
        nargs="+",
        metavar="WHAT",
        help=f"files to leave unread: {', '.join(f'{name} ({what})' for name, what in IGNORED.items())} "
        "(default: none)",
    )
    group.add_argument(
        "--skip-bids-validation",
        action="store_true",
        help="skip the BIDS validator; its errors in files that would be used end the run",
    )
    group.add_argument(
        "--bids-database-dir",
        metavar="DIR",
        help="pybids index to reuse or create, for large data sets",
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--skip",
        nargs="+",
        metavar="STEP",
        help=f"steps of preprocessing to leave out: {', '.join(f'{name} ({what})' for name, what in STEPS.items())} "
        "(default: none)",
    )
    group.add_argument(
        "--denoise",
        choices=DENOISING,
        help="how diffusion series are denoised: mppca, or patch2self, which predicts each volume from the others "
        "(default: mppca)",
    )
    group.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="models to fit; 'qmri models' lists them (default: auto, all that the data support except opt-in models)",
    )
    group.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="estimators: NAME for every model that it supports, or MODEL:NAME for one model (default: auto)",
    )
    group.add_argument(
        "--weights",
        metavar="DIR",
        help="weights from 'qmri train' for every trained estimator of the run; excludes --prior (default: mlp and "
        "other voxelwise estimators are trained during the run, once per protocol; rim comes with weights; resnet has "
        "none)",
    )
    group.add_argument(
        "--prior",
        choices=PRIORS,
        help="training distribution of learned estimators during the run: uniform within the bounds; or, from the fits "
        "of at least three participants of an earlier run in output_dir, the density of all tissue (healthy) or of one "
        "(healthy-wm, healthy-gm); or half uniform, half healthy (mixed) (default: uniform)",
    )
    group.add_argument(
        "--n-fibres",
        choices=N_FIBRES,
        help="fibre directions per voxel in models that have them (such as noddi): 1, or auto for 0 to 3 found by "
        "constrained spherical deconvolution (default: 1)",
    )
    group.add_argument(
        "--no-certificate",
        action="store_true",
        help="skip the simulations of each estimator, and their results: maps of expected bias and of the range of the "
        "truth, flags of voxels unlike the simulated ones, intervals of learned estimators (default: simulate once per "
        "protocol and noise level)",
    )
    group.add_argument(
        "--debias",
        action="store_true",
        help="also write maps minus their expected bias (desc-<estimator>debiased); their sidecars give bias and "
        "variance before and after",
    )


def _add_motion(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--motion-weights",
        metavar="PATH",
        help="weights of the motion score of T1w images: a folder from 'qmri train motion', or a TorchScript file with "
        "the input and output of the published model (default: the weights that come with the program)",
    )
    group.add_argument(
        "--motion-weights-sha256", metavar="HEX", help="required SHA-256 of --motion-weights (default: not checked)"
    )
    group.add_argument(
        "--qc-head",
        metavar="DIR",
        help="quality-control head from 'qmri train qc-head'; writes the probability of each of your lab's grades",
    )
    group.add_argument("--no-motion-score", action="store_true", help="skip the motion score of T1w images")
    group.add_argument(
        "--output-layout",
        choices=LAYOUTS,
        help="bids: derivatives in output_dir; legacy: in output_dir/qmri_bidsapp (default: bids)",
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        metavar="auto|cpu|cuda[:n]",
        help="device of the estimators; a requested device that is absent is an error (default: auto)",
    )
    group.add_argument("--nprocs", type=int, metavar="N", help="CPUs to use (default: all available to this process)")
    group.add_argument(
        "--omp-nthreads",
        type=int,
        metavar="N",
        help="maximum CPUs per step (default: nprocs divided by the number of participants, at least 1)",
    )
    group.add_argument(
        "--mem-gb",
        type=float,
        metavar="GB",
        help=f"memory to use (default: {MEMORY_SHARE:g} of the machine's, or of the limit of the container or job)",
    )
    group.add_argument("--use-plugin", metavar="FILE", help="nipype plugin settings (YAML: plugin, plugin_args)")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-w",
        "--work-dir",
        metavar="DIR",
        help="folder for intermediate results; a second run with the same folder recomputes only what changed "
        f"(default: {WORK_DIR}, in the current folder)",
    )
    group.add_argument(
        "--clean-workdir",
        action="store_true",
        help="remove the intermediate results of a participant after success",
    )
    group.add_argument("--stop-on-first-crash", action="store_true", help="stop the whole run at the first failed step")
    alone = group.add_mutually_exclusive_group()
    alone.add_argument("--reports-only", action="store_true", help="only rebuild the reports from the output folder")
    alone.add_argument("--boilerplate-only", action="store_true", help="only write the methods text")
    group.add_argument(
        "--config-file",
        metavar="TOML",
        help="options of an earlier run (logs/<run>.toml); the command line overrides them",
    )
    group.add_argument("-v", "--verbose", action="count", help="also print messages that otherwise go only to the log")


def parse(argv: list[str] | None = None) -> Config:
    """Return the options of a command line.

    Raises
    ------
    UsageError, UnknownLevelError, InputMissingError
        If the command line cannot be understood.
    """
    given: dict[str, Any] = vars(build_parser().parse_args(sys.argv[1:] if argv is None else argv))
    if given["analysis_level"] not in LEVELS:
        raise UnknownLevelError(f"The analysis level must be {' or '.join(LEVELS)}, got {given['analysis_level']!r}.")
    for name, prefix in _LISTS.items():
        if name in given:
            given[name] = words(name, given[name], prefix)
    config_file = given.pop("config_file", None)
    values = {**(read_toml(Path(config_file)) if config_file else {}), **given}
    values["run_id"] = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    values.setdefault("work_dir", WORK_DIR)
    values.setdefault("nprocs", available_cpus())
    values.setdefault("mem_gb", available_memory_gb())
    values.setdefault("omp_nthreads", _threads_per_step(values))
    return make_config(values)


def _threads_per_step(values: dict[str, Any]) -> int:
    """Return the number of CPUs per participant: several participants share the CPUs, one participant uses all."""
    n_participants = len(values.get("participant_label", ())) or len(list(Path(values["bids_dir"]).glob("sub-*")))
    n_cpus = values["nprocs"] if isinstance(values["nprocs"], int) else 1
    return max(1, n_cpus // max(1, n_participants))
