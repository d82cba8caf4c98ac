"""``qmri train qc-head``: predict a lab's own quality grades from the embeddings of the motion network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.cli.evaluate.results import check_json, write_json

DESCRIPTION = """\
Train a small network to predict a lab's own grades of T1w images from embeddings of the motion network.

The embeddings come from the output folder of qmri-bids. Grades are numbers on an ordinal scale. Prints
the accuracy for subjects that were not in training, and writes weights for qmri-bids --qc-head.
"""
EPILOG = """\
Example:
  qmri train qc-head head --labels participants.tsv --grade-column qc --bids-derivatives out
  qmri-bids bids out participant --qc-head head
"""


def add_parser(commands: Any) -> None:
    """Add ``qc-head`` to the commands of ``qmri train``."""
    parser = commands.add_parser(
        "qc-head",
        help="a lab's own quality grades of T1w images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
    )
    parser.add_argument("folder", type=Path, help="output folder of the weights")
    parser.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="TSV",
        help="participant_id, session_id where grades differ between sessions, and the grade",
    )
    parser.add_argument("--grade-column", default="grade", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--bids-derivatives",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="output folders of qmri-bids with motion scores",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the accuracy to a file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Read grades and embeddings, cross-validate, train on all, and write the weights.

    Raises
    ------
    UsageError
        If the labels cannot be used.
    InputMissingError
        If labels or embeddings are missing.
    OutputError
        If weights or figures cannot be written.
    """
    from qmri_bidsapp.bids.embeddings import graded_images, read_grades
    from qmri_bidsapp.motion.qc_head import QualityHead, cross_validate

    check_json(arguments.json)
    images = graded_images(arguments.bids_derivatives, read_grades(arguments.labels, arguments.grade_column))
    for note in images.notes:
        print(note)
    figures = cross_validate(images.embeddings, images.grades, images.subjects, seed=arguments.seed)
    _print(figures)
    head = QualityHead.learn(images.embeddings, images.grades, seed=arguments.seed)
    notes = {"validation": figures, "seed": arguments.seed, "grade_column": arguments.grade_column}
    head.save(arguments.folder, images.motion_sha256, notes)
    write_json(figures, arguments.json)
    print(arguments.folder)


def _print(figures: dict[str, Any]) -> None:
    grades = figures["grades"]
    print(
        f"{figures['n']} images of {figures['n_subjects']} subjects; cross-validation over {figures['folds']} folds of "
        f"subjects: balanced accuracy {figures['balanced_accuracy']:.3f} (random guesses: {1 / len(grades):.3f})"
    )
    print("\n| grade | F1 | " + " | ".join(f"predicted {grade}" for grade in grades) + " |")
    print("| ---: |" + " ---: |" * (len(grades) + 1))
    for grade, row in zip(grades, figures["confusion"], strict=True):
        print(f"| {grade} | {figures['f1'][grade]:.2f} | " + " | ".join(map(str, row)) + " |")
