"""The options of ``qmri-bids``. Nothing heavy is imported: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NoReturn

from qmri_bidsapp import __version__
from qmri_bidsapp.config import (
    LAYOUTS,
    LEVELS,
    MEMORY_SHARE,
    Config,
    available_cpus,
    available_memory_gb,
    convert,
    read_toml,
)
from qmri_bidsapp.errors import UnknownLevelError, UsageError

DESCRIPTION = (
    "Quantitative-MRI maps from BIDS data, each with its standard deviation and a status per voxel. Found series (T1w, "
    "IRT1, MESE, MEGRE, dwi) are preprocessed and fitted; maps, reports and logs go to the output folder."
)
EPILOG = (
    "Exit codes: 0 all well, 1 some participant failed, 16 invalid BIDS, 17 unknown analysis level, 18 nothing matched, "
    "64 usage, 66 input missing, 73 output cannot be written, 130 interrupted."
)


class Parser(argparse.ArgumentParser):
    """Raises instead of ending the program with argparse's own exit code."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def _words(text: str) -> list[str]:
    """Split at commas."""
    return [word for word in text.split(",") if word]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; an option that was not given is absent from its result."""
    parser = Parser(
        prog="qmri-bids",
        description=DESCRIPTION,
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
    )
    parser.add_argument("bids_dir", help="folder of the BIDS data set")
    parser.add_argument("output_dir", help="folder for the derivatives")
    parser.add_argument(
        "analysis_level",
        metavar="{participant,group}",
        help="participant: maps and reports of each "
        "subject; group: tables and a report over all subjects of the output folder",
    )
    parser.add_argument("--version", action="version", version=f"qmri-bids {__version__}")
    _add_selection(parser.add_argument_group("Choosing data"))
    _add_methods(parser.add_argument_group("Choosing methods"))
    _add_resources(parser.add_argument_group("Resources"))
    _add_running(parser.add_argument_group("Running"))
    return parser


def _add_selection(group: argparse._ArgumentGroup) -> None:
    many = {"nargs": "+", "metavar": "LABEL"}
    group.add_argument("--participant-label", **many, help="participants, with or without 'sub-' (default: all)")
    group.add_argument("--session-label", **many, help="sessions, with or without 'ses-' (default: all)")
    group.add_argument("--run-label", **many, help="runs, with or without 'run-' (default: all)")
    group.add_argument("--bids-filter-file", metavar="FILE", help="JSON: t1w, irt1, mese, megre, dwi -> pybids query")
    group.add_argument("--skip-bids-validation", action="store_true", help="do not run the BIDS validator")
    group.add_argument(
        "--bids-database-dir", metavar="DIR", help="pybids index to reuse, or to make, for large data sets"
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--models",
        type=_words,
        metavar="NAMES",
        help="comma-separated; 'qmri models' lists them (default: auto, all that the data allow)",
    )
    group.add_argument(
        "--estimators",
        type=_words,
        metavar="NAMES",
        help="comma-separated, for all models or for one as model:estimator (default: auto)",
    )
    group.add_argument(
        "--output-layout",
        choices=LAYOUTS,
        help="bids: derivatives in output_dir; legacy: in output_dir/qmri_bidsapp (default: bids)",
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        metavar="auto|cpu|cuda[:n]",
        help="where estimators run; a device that is asked for and absent is an error (default: auto)",
    )
    group.add_argument("--nprocs", type=int, metavar="N", help="CPUs to use (default: all that this process may use)")
    group.add_argument(
        "--omp-nthreads",
        type=int,
        metavar="N",
        help="most CPUs of one step (default: nprocs divided by the number of participants, at least 1)",
    )
    group.add_argument(
        "--mem-gb",
        type=float,
        metavar="GB",
        help=f"memory to use (default: {MEMORY_SHARE:g} of the machine's, or of its container's limit)",
    )
    group.add_argument("--use-plugin", metavar="FILE", help="nipype plugin settings (YAML: plugin, plugin_args)")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-w",
        "--work-dir",
        metavar="DIR",
        help="folder for intermediate results; a second run with the same "
        "one computes only what changed (default: work)",
    )
    group.add_argument(
        "--clean-workdir",
        action="store_true",
        help="remove a participant's intermediate results once all went well",
    )
    group.add_argument("--stop-on-first-crash", action="store_true", help="stop everything at the first failed step")
    group.add_argument("--reports-only", action="store_true", help="only rebuild the reports from the output folder")
    group.add_argument("--boilerplate-only", action="store_true", help="only write the methods text")
    group.add_argument(
        "--config-file",
        metavar="TOML",
        help="options of an earlier run (logs/<run>.toml); options on the command line override it",
    )
    group.add_argument("-v", "--verbose", action="count", help="say more; twice for debugging")


def parse(argv: list[str] | None = None) -> Config:
    """Return the choices of a command line.

    Raises
    ------
    UsageError, UnknownLevelError, InputMissingError
        If it cannot be understood.
    """
    given: dict[str, Any] = vars(build_parser().parse_args(sys.argv[1:] if argv is None else argv))
    if given["analysis_level"] not in LEVELS:
        raise UnknownLevelError(f"The analysis level must be {' or '.join(LEVELS)}, got {given['analysis_level']!r}.")
    for name, prefix in (("participant_label", "sub-"), ("session_label", "ses-"), ("run_label", "run-")):
        if name in given:
            labels = [label.removeprefix(prefix) for word in given[name] for label in word.split(",")]
            given[name] = list(dict.fromkeys(labels))
    config_file = given.pop("config_file", None)
    values = convert({**(read_toml(Path(config_file)) if config_file else {}), **given})
    values["run_id"] = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    values.setdefault("work_dir", Path("work").absolute())
    values.setdefault("nprocs", available_cpus())
    values.setdefault("mem_gb", available_memory_gb())
    values.setdefault("omp_nthreads", _threads_per_step(values))
    return Config(**values)


def _threads_per_step(values: dict[str, Any]) -> int:
    """Return as many threads as there are CPUs per participant: several participants share them, one uses all."""
    labels = values.get("participant_label")
    n_participants = len(labels) if labels else len(list(Path(values["bids_dir"]).glob("sub-*")))
    return max(1, values["nprocs"] // max(1, n_participants))
