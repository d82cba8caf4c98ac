"""``qmri evaluate motion``: accuracy of the motion score on T1w volumes of any folder, with simulated motion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qmri_bidsapp.cli.arguments import seed
from qmri_bidsapp.cli.evaluate.results import add_json, check_json, show, write_json
from qmri_bidsapp.cli.resources import available_cpus
from qmri_bidsapp.errors import InputMissingError, UsageError

#: Figure -> its title and format.
FIGURES = {
    "r2": ("R2", ".3f"),
    "mae_mm": ("error, mm", ".3f"),
    "bias_mm": ("bias, mm", "+.3f"),
    "spearman_within_head": ("rank", ".3f"),
    "coverage_90": ("in 90 %", ".2f"),
    "still_mean_mm": ("still, mm", ".2f"),
}


def add_parser(what: Any) -> None:
    """Add ``motion`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("motion", help="accuracy of the motion score of T1w images, with simulated motion")
    parser.add_argument(
        "--heads", type=Path, required=True, metavar="DIR", help="T1w volumes without motion (.nii, .nii.gz)"
    )
    parser.add_argument(
        "--per-head", type=int, default=10, metavar="N", help="simulated motions per head (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="seed of the motion (default: %(default)s)")
    parser.add_argument("--motion-weights", type=Path, metavar="PATH", help="as for qmri-bids (default: the program's)")
    parser.add_argument("--motion-weights-sha256", metavar="HEX", help="required SHA-256 of the weights")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: all available CPUs)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Simulate motion, score the images, print a table, and write the results.

    Raises
    ------
    UsageError
        If a number is out of range, or the weights cannot be used.
    InputMissingError
        If there are no weights or no volumes.
    InputError
        If no volume can be used.
    OutputError
        If the results cannot be written.
    """
    threads = available_cpus() if arguments.threads is None else arguments.threads
    if threads < 1 or arguments.per_head < 1:
        raise UsageError("--threads and --per-head must be at least 1.")
    check_json(arguments.json)

    import torch

    from qmri_bidsapp.evaluation.motion_score import evaluate, find_volumes
    from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer
    from qmri_bidsapp.preprocess.anat import correct_bias

    weights = arguments.motion_weights or SHIPPED
    if not weights.exists():
        raise InputMissingError(f"There are no weights at {weights}; choose weights with --motion-weights.")
    torch.set_num_threads(threads)
    paths = find_volumes(arguments.heads)
    scorer = MotionScorer.open(weights, arguments.motion_weights_sha256)
    print(f"{len(paths)} files; {1 + arguments.per_head} images per file; weights {scorer.sha256[:12]}", flush=True)
    found = evaluate(
        paths,
        arguments.heads,
        scorer,
        per_head=arguments.per_head,
        seed=arguments.seed,
        correct_bias=correct_bias,
        report=show,
        skip=lambda line: print(line, flush=True),
    )
    figures = found.figures()
    _print(figures)
    write_json(figures, arguments.json)


def _print(figures: dict[str, Any]) -> None:
    """Print a Markdown table, by head and overall."""
    print("\n| head | " + " | ".join(title for title, _ in FIGURES.values()) + " |")
    print("| --- |" + " ---: |" * len(FIGURES))
    for name, row in [*figures["by_head"].items(), ("*all*", figures)]:
        cells = ("-" if row[key] is None else format(row[key], form) for key, (_, form) in FIGURES.items())
        print(f"| {name} | {' | '.join(cells)} |")
    refused = sum(row.get("refused", 0) for row in figures["by_head"].values())
    if refused:
        print(f"\n{refused} images with motion were refused and do not count.")
    print(f"\nUndisturbed heads with a score below 0.5 mm: {figures['still_below_0.5']:.0%}")
