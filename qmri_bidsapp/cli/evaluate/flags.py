"""``qmri evaluate ood``: how well flags detect voxels unlike those of a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qmri_bidsapp.cli.arguments import words
from qmri_bidsapp.cli.evaluate.results import add_json, add_voxel_counts, check_json, show, voxel_counts, write_json
from qmri_bidsapp.errors import UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.evaluation.flags.areas import Result, Setting

MODELS = ("smt", "noddi", "t1", "t2")


def add_parser(what: Any) -> None:
    """Add ``ood`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("ood", help="how well flags detect voxels unlike those of a model")
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"default: {' '.join(MODELS)}")
    parser.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="estimators that support a model; learned ones are trained on the prior of the table (default: nlls)",
    )
    add_voxel_counts(parser, "voxels per case")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table per model and prior, and write the results.

    Raises
    ------
    UsageError
        If a model has no cases, no estimator supports it, or there are too few voxels.
    OutputError
        If the results cannot be written.
    """
    check_json(arguments.json)

    from qmri_bidsapp.evaluation.flags import areas as ood

    n, n_reference = voxel_counts(arguments.voxels, ood.N_PER_CASE, arguments.reference)
    results: dict[str, Any] = {}
    rates: dict[str, Any] = {}
    for setting in _settings(arguments.models, arguments.estimators):
        result = ood.evaluate(setting, n=n, n_reference=n_reference, report=show)
        _print(setting, result)
        results[setting.name] = result.auroc
        rates[setting.name] = result.false_positives
    write_json({**results, "false_positive_rates": rates}, arguments.json)


def _settings(models: list[str] | None, estimators: list[str] | None) -> list[Setting]:
    """Return the settings of the chosen models, for every chosen estimator that supports them."""
    from qmri_bidsapp.evaluation.flags.areas import settings
    from qmri_bidsapp.registry import get_estimator, get_model

    found: list[Setting] = []
    for name in MODELS if models is None else words("models", models):
        if name not in MODELS:
            raise UsageError(f"There are no cases for model {name!r}; models with cases: {', '.join(MODELS)}.")
        if estimators is None:
            found += settings(name)
            continue
        chosen = [key for key in words("estimators", estimators) if get_estimator(key).supports(get_model(name))]
        if not chosen:
            raise UsageError(f"None of the estimators supports model {name}.")
        for key in chosen:
            if get_estimator(key).is_spatial:
                raise UsageError(
                    f"Estimator {key} estimates whole images and has no certificate; choose a voxelwise one."
                )
            found += settings(name, key)
    return found


def _print(setting: Setting, result: Result) -> None:
    """Print a Markdown table."""
    scores = list(result.false_positives)
    rates = " | ".join(f"{100 * result.false_positives[score]:.1f}" for score in scores)
    print(f"\n{setting.name}: area under the ROC curve; prior {setting.prior.name}, SNR {setting.snr:g}\n")
    print("| case | " + " | ".join(scores) + " | flagged, % |")
    print("| --- |" + " ---: |" * (len(scores) + 1))
    for case, areas in result.auroc.items():
        cells = " | ".join(f"{areas[score]:.2f}" for score in scores)
        print(f"| {case} | {cells} | {100 * result.flagged[case]:.0f} |")
    print(f"| *typical voxels, % with p ≤ 0.05* | {rates} | |", flush=True)
