"""Errors and training time of learned estimators and their optimisers, as a Markdown table.

Errors are those on the card of the weights, relative to the spread of the prior, and for `smt` those of Table 3 (see
docs/validation/accuracy.md). Time is processor time on one thread.
"""

from __future__ import annotations

import argparse
import time

import torch

from qmri_bidsapp.core.acquisition import Acquisition, InversionRecovery
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.estimators.learned.base import LearnedEstimator
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.polynomial import PolynomialRegression
from qmri_bidsapp.estimators.learned.training import OPTIMISERS, Training
from qmri_bidsapp.estimators.learned.wide_deep import WideDeep
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.registry import get_model

PROTOCOLS: dict[str, Acquisition] = {
    "smt": table3.PROTOCOL,
    "t1": InversionRecovery((0.05, 0.2, 0.4, 0.7, 1.1, 1.6, 2.3, 3.2, 5.0)),
}
PARAMETERS = {"smt": ("intra_fraction", "diffusivity"), "t1": ("t1",)}


def rows(models: list[str]) -> dict[str, tuple[type[LearnedEstimator], dict]]:
    """Return row -> class and options of an estimator."""
    found: dict[str, tuple[type[LearnedEstimator], dict]] = {
        f"mlp, {name}": (MultilayerPerceptron, {"training": Training(optimiser=name)}) for name in OPTIMISERS
    }
    for name in OPTIMISERS:
        found[f"wide-deep, {name} for the wide part"] = (WideDeep, {"wide_optimiser": name})
    for name in ("exact", "sdca"):
        found[f"polynomial, {name}"] = (PolynomialRegression, {"optimiser": name})
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS)
    parser.add_argument("--rows", default="", help="prefix of the rows to measure")
    parser.add_argument("--samples", type=int, default=200, help="samples per point of Table 3")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    noisy = table3.simulate(arguments.samples)
    print("| model | estimator, optimiser | RMSE of Table 3 | error / spread of the prior | coverage | training, s |")
    print("| --- | --- | --- | --- | --- | ---: |")
    for model in arguments.models:
        for name, (kind, options) in rows(arguments.models).items():
            if not name.startswith(arguments.rows):
                continue
            noise = Noise("gaussian", (table3.SNR, table3.SNR)) if model == "smt" else None
            estimator, start = kind(get_model(model), noise=noise, **options), time.process_time()
            estimator.fit(PROTOCOLS[model])
            seconds, errors = time.process_time() - start, "-"
            if model == "smt":
                found, _ = table3.measure(
                    table3.estimate(lambda s, e=estimator: e.predict(s).estimate[:, 1:] / [1.0, 1e-3], noisy)
                )
                errors = "{:.4f} / {:.4f}".format(*found.rmse)
            card = [estimator.notes_["validation"][key] for key in PARAMETERS[model]]
            relative = " / ".join(f"{item['relative_rmse']:.4f}" for item in card)
            coverage = " / ".join(f"{100 * item['coverage_of_95']:.1f} %" for item in card)
            print(f"| {model} | {name} | {errors} | {relative} | {coverage} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
