"""``qmri train``: one command for each model, and one for each network of the motion score."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from qmri_bidsapp.cli.train import motion, qc_head, voxelwise
from qmri_bidsapp.registry import model_names

DESCRIPTION = """\
Train a learned estimator of a model on simulated data, or a network of the motion score.

Models:
{models}
"""


def add_parser(commands: Any) -> None:
    """Add ``train`` to the commands of ``qmri``."""
    models = model_names()
    train = commands.add_parser(
        "train",
        help="train a learned estimator of a model, or a network of the motion score",
        usage="%(prog)s WHAT ...",
        description=DESCRIPTION.format(
            models=textwrap.fill(", ".join(models), 98, initial_indent="  ", subsequent_indent="  ")
        ),
        epilog="'qmri train WHAT --help' lists the options of a command.",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
    )
    what = train.add_subparsers(
        title="commands",
        dest="what",
        required=True,
        metavar="WHAT",
        prog="qmri train",
        parser_class=type(train),
        help="MODEL: a learned estimator of this model, voxelwise or spatial; or one of:",
    )
    voxelwise.add_parsers(what, models)
    motion.add_parser(what)
    qc_head.add_parser(what)
