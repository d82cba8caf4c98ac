"""``qmri evaluate relaxometry``: the experiments of Sabidussi et al. 2021 on virtual heads."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qmri_bidsapp.cli.evaluate.results import add_json, check_json, show, write_json
from qmri_bidsapp.errors import OutputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.models.base import SignalModel

N_REPETITIONS = 100
#: Experiments, in their order.
PARTS = ("noise", "structures", "protocols", "edge")
#: Seed of the tissue. The noise has another one.
SCENE_SEED = 7
PHANTOM_SHAPE = (96, 112, 96)


def add_parser(what: Any) -> None:
    """Add ``relaxometry`` to the commands of ``qmri evaluate``."""
    parser = what.add_parser("relaxometry", help="errors of estimators of T1 or T2 on virtual heads")
    parser.add_argument("--model", choices=("t1", "t2"), default="t1", help="default: %(default)s")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="DIR",
        help="folder of SynthSeg label maps; measures the last five, which training leaves out (default: a head of "
        "ellipsoids)",
    )
    parser.add_argument("--repetitions", type=int, default=N_REPETITIONS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--map-repetitions",
        type=int,
        default=5,
        metavar="N",
        help="repetitions of map; 0 skips map (default: %(default)s)",
    )
    parser.add_argument("--heads", type=int, metavar="N", help="measure only the last N heads")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="experiments (default: all)")
    parser.add_argument(
        "--rician",
        action="store_true",
        help="Rician noise, and mle with the Rician likelihood (default: Gaussian, as in the paper)",
    )
    parser.add_argument(
        "--rim-weights", type=Path, metavar="DIR", help="default: the weights that come with the program"
    )
    parser.add_argument("--resnet-weights", type=Path, metavar="DIR", help="default: skip resnet")
    parser.add_argument(
        "--specific-weights",
        type=Path,
        metavar="DIR",
        help="weights of rim for one protocol, measured beside the general ones",
    )
    add_json(parser)
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write figures into a folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure, print tables, and write results and figures.

    Raises
    ------
    UsageError
        If there are fewer than two repetitions, or weights belong to another model or estimator.
    OutputError
        If the results cannot be written.
    """
    if arguments.repetitions < 2 or (arguments.map_repetitions or 2) < 2 or (arguments.heads or 1) < 1:
        raise UsageError(
            "--repetitions and --map-repetitions must be at least 2 (or 0 to skip map), --heads at least 1."
        )
    check_json(arguments.json)
    if arguments.figures is not None and not arguments.figures.absolute().parent.is_dir():
        raise OutputError(f"--figures: the folder of {arguments.figures} does not exist.")

    import numpy as np

    from qmri_bidsapp.estimators.spatial.trials import PROTOCOLS, draw_scene
    from qmri_bidsapp.estimators.trained import TrainedEstimator
    from qmri_bidsapp.evaluation.relaxometry import experiments
    from qmri_bidsapp.evaluation.relaxometry.figures import save_figures
    from qmri_bidsapp.registry import get_model

    model = get_model(arguments.model)
    protocols = PROTOCOLS[model.name]
    estimators = {name: _estimators(arguments, model, acquisition) for name, acquisition in protocols.items()}
    last = list(protocols)[-1]
    standard, chosen = protocols[last], estimators[last]
    heads = _heads(arguments.labels)[-(arguments.heads or 0) :]
    scene = draw_scene(model, heads, np.random.default_rng(SCENE_SEED))
    setting = experiments.ExperimentSettings(
        model,
        arguments.repetitions,
        n_slow=arguments.map_repetitions,
        is_rician=arguments.rician,
        report=show,
    )
    measure: dict[str, Callable[[], Any]] = {
        "noise": lambda: experiments.noise_robustness(setting, chosen, scene, standard),
        "structures": lambda: experiments.small_structures(setting, chosen, scene, standard),
        "protocols": lambda: experiments.generalisation(setting, estimators, scene, protocols),
        "edge": lambda: experiments.edge_widths(setting, chosen, standard),
    }
    print(
        f"{model.title}: {len(heads)} virtual heads, {int(scene.brain.sum()):,} voxels, {arguments.repetitions} "
        f"repetitions, {'Rician' if arguments.rician else 'Gaussian'} noise"
    )
    results: dict[str, Any] = {"model": model.name, "repetitions": arguments.repetitions, "rician": arguments.rician}
    results["weights"] = {
        name: estimator.sha256_ for name, estimator in chosen.items() if isinstance(estimator, TrainedEstimator)
    }
    for part in PARTS:
        if part in arguments.parts:
            results[part] = _plain(measure[part]())
            print(*TABLES[part](results[part]), sep="\n", flush=True)
    write_json(results, arguments.json)
    if arguments.figures is not None:
        save_figures(results, arguments.figures)


def _estimators(arguments: argparse.Namespace, model: SignalModel, acquisition: Acquisition) -> dict[str, Estimator]:
    """Return name -> estimator fitted to a protocol, for all that support it."""
    from qmri_bidsapp.errors import WeightsError
    from qmri_bidsapp.estimators.likelihood.rician import RicianLikelihood
    from qmri_bidsapp.estimators.likelihood.varpro import VariableProjection
    from qmri_bidsapp.estimators.posterior.smooth_field import SmoothFieldPosterior
    from qmri_bidsapp.estimators.spatial.estimators import RecurrentInference, ResidualEstimation

    likelihood = RicianLikelihood if arguments.rician else VariableProjection
    noise: Literal["rician", "gaussian"] = "rician" if arguments.rician else "gaussian"
    found: dict[str, Estimator] = {"mle": likelihood(model).fit(acquisition)}
    if SmoothFieldPosterior.supports(model) and arguments.map_repetitions:
        found["map"] = SmoothFieldPosterior(model).fit(acquisition)
    found["rim"] = RecurrentInference(model, weights=arguments.rim_weights, noise=noise).fit(acquisition)
    for name, kind, weights in (
        ("resnet", ResidualEstimation, arguments.resnet_weights),
        ("rim for these times", RecurrentInference, arguments.specific_weights),
    ):
        if weights is None:
            continue
        try:
            found[name] = kind(model, weights=weights, noise=noise).fit(acquisition)
        except WeightsError as error:
            print(f"{name} is skipped for {acquisition.n_measurements} times: {error}", file=sys.stderr)
    return found


def _heads(folder: Path | None) -> list[npt.NDArray[np.uint8]]:
    """Return heads that training leaves out."""
    from qmri_bidsapp.estimators.spatial.recipe import N_HELD_OUT
    from qmri_bidsapp.estimators.spatial.virtual_heads import crop, label_phantom, structures_of
    from qmri_bidsapp.images.label_maps import load_heads

    if folder is None:
        return [crop(structures_of(label_phantom(PHANTOM_SHAPE)))]
    return load_heads(folder)[-N_HELD_OUT:]


def _plain(results: Any) -> Any:
    """Return results as plain data, failures as null."""
    if hasattr(results, "_asdict"):
        results = results._asdict()
    if isinstance(results, dict):
        return {key: _plain(value) for key, value in results.items()}
    if isinstance(results, list):
        return [_plain(value) for value in results]
    return results if not isinstance(results, float) or math.isfinite(results) else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cells(spread: dict[str, Any], key: str) -> str:
    """Return the median and the 5th and 95th percentiles, in percent."""
    low, _, middle, _, high = map(_percent, spread[key])
    return f"{middle} ({low} to {high})"


def _noise_table(results: dict[str, Any]) -> list[str]:
    rows = [
        "",
        "Median (5th to 95th percentile) over voxels, %",
        "",
        "| SNR | estimator | relative bias | absolute bias | CV |",
    ]
    rows.append("| ---: | --- | ---: | ---: | ---: |")
    for snr, by_name in results.items():
        rows += [
            f"| {snr} | {name} | {_cells(part, 'bias')} | {_percent(part['absolute_bias'][2])} | {_cells(part, 'cv')} |"
            for name, part in by_name.items()
        ]
    return rows


def _structures_table(results: dict[str, Any]) -> list[str]:
    names = list(next(iter(next(iter(results.values())).values())))
    rows = ["", "Contrast kept, % (CV, %), at SNR 10", ""]
    rows += ["| structure | time, relative | " + " | ".join(names) + " |", "| --- | ---: |" + " ---: |" * len(names)]
    for kind, by_factor in results.items():
        for factor, found in by_factor.items():
            cells = [f"{_percent(found[name]['kept'])} ({_percent(found[name]['cv'])})" for name in names]
            rows.append(f"| {kind} | {factor} | " + " | ".join(cells) + " |")
    return rows


def _protocols_table(results: dict[str, Any]) -> list[str]:
    rows = ["", "Medians over voxels at SNR 10, and mean CV of two scans, %", ""]
    rows += [
        "| times | estimator | relative bias | absolute bias | CV | CV of two scans |",
        "| ---: | --- |" + " ---: |" * 4,
    ]
    for times, by_name in results.items():
        for name, part in by_name.items():
            cells = (part["bias"][2], part["absolute_bias"][2], part["cv"][2], part["mean_cv_of_two_scans"])
            rows.append(f"| {times} | {name} | " + " | ".join(map(_percent, cells)) + " |")
    return rows


def _edge_table(results: dict[str, Any]) -> list[str]:
    rows = ["", "Width of an edge from white to grey matter, 10 to 90 %, voxels, at SNR 10", ""]
    rows += ["| estimator | median (5th to 95th percentile) |", "| --- | ---: |"]
    for name, part in results.items():
        low, _, middle, _, high = part["width"]
        rows.append(f"| {name} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return rows


TABLES = {
    "noise": _noise_table,
    "structures": _structures_table,
    "protocols": _protocols_table,
    "edge": _edge_table,
}
