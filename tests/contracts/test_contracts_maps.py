"""Every estimate of a small stored input is what it was, or the number of the format of maps was raised.

After a change that is meant to change maps: raise `MAPS` in `qmri_bidsapp/formats.py`, say so in the changelog, and run

    python tests/contracts/test_contracts_maps.py --write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.formats import MAPS
from qmri_bidsapp.registry import get_estimator, get_model, load_estimators, load_models

STORED = Path(__file__).resolve().parents[1] / "data" / "maps.json"
REMEDY = (
    "maps changed: if they were meant to, raise MAPS in qmri_bidsapp/formats.py and run "
    "`python tests/contracts/test_contracts_maps.py --write`"
)
#: Models whose weights come with the program, by spatial network; other trained estimators check their own weights.
WITH_WEIGHTS = {"rim": ("t1", "t2")}
N_VOXELS = 6


def is_repeatable(model_name: str, estimator_name: str) -> bool:
    """Whether both are of this package, and the fit depends on nothing that was trained on this machine."""
    model, kind = get_model(model_name), get_estimator(estimator_name)
    ours = all(name.startswith("qmri_bidsapp.") for name in (type(model).__module__, kind.__module__))
    if not ours or not kind.supports(model):
        return False
    return not issubclass(kind, TrainedEstimator) or model_name in WITH_WEIGHTS.get(estimator_name, ())


PAIRS = [(m, e) for m in sorted(load_models()) for e in sorted(load_estimators()) if is_repeatable(m, e)]


def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text())


def fit(model_name: str, estimator_name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return estimates, standard deviations and status of the stored signals of a model."""
    model = get_model(model_name)
    estimator: Estimator = get_estimator(estimator_name)(model)
    estimator.fit(Acquisition.from_dict(given["protocol"]))
    noise = np.full(len(given["signals"]), given["noise_std"])
    maps = estimator.predict(np.array(given["signals"]), noise_std=noise, covariates=np.array(given["covariates"]))
    return {"estimate": maps.estimate, "std": maps.std, "status": maps.status}


@pytest.mark.parametrize(("model_name", "estimator_name"), PAIRS)
def test_maps_are_those_of_the_stored_format(model_name: str, estimator_name: str) -> None:
    """To 5 % of a standard deviation, which rounding on another processor never reaches and other maths soon does."""
    known = stored()
    assert known["format"] == MAPS, f"tests/data/maps.json holds format {known['format']}, not {MAPS}: {REMEDY}"
    given, key = known["inputs"].get(model_name), f"{model_name}:{estimator_name}"
    assert given is not None, f"no stored input for model {model_name}: run with --write"
    assert key in known["maps"], f"no stored maps of {key}: run with --write"
    expected = {name: np.array(values, dtype=float) for name, values in known["maps"][key].items()}
    found = fit(model_name, estimator_name, given)
    assert found["status"].tolist() == expected["status"].tolist(), REMEDY
    for name in ("estimate", "std"):
        margin = 1e-3 * np.abs(expected[name]) + 0.05 * np.nan_to_num(expected["std"]) + 1e-9
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(expected[name]), err_msg=REMEDY)
        excess = np.nan_to_num(np.abs(found[name] - expected[name]) / margin)
        assert excess.max() <= 1, f"{key}, {name}, {excess.max():.1f} times the margin: {REMEDY}"


def test_nothing_is_stored_in_vain() -> None:
    assert sorted(stored()["maps"]) == sorted(f"{m}:{e}" for m, e in PAIRS)


def rounded(values: np.ndarray, digits: int = 5) -> list[Any]:
    return [[float(f"{value:.{digits}g}") for value in row] for row in np.asarray(values, dtype=float)]


def write() -> None:
    """Fit again and store; inputs stay, and models without one get theirs."""
    from test_contracts import tissue  # this folder is on the path of a script

    known = stored() if STORED.exists() else {"inputs": {}}
    for name in sorted({name for name, _ in PAIRS} - set(known["inputs"])):
        case = tissue(name, N_VOXELS)
        signals = case.signals(N_VOXELS, noise=1.0)
        known["inputs"][name] = {
            "protocol": case.acquisition.to_dict(),
            "noise_std": float(f"{0.01 * signals.max():.3g}"),
            "signals": rounded(signals),
            "covariates": rounded(case.covariates),
        }
    maps = {}
    for model_name, estimator_name in PAIRS:
        found = fit(model_name, estimator_name, known["inputs"][model_name])
        kept = {name: rounded(found[name]) for name in ("estimate", "std")}
        maps[f"{model_name}:{estimator_name}"] = {**kept, "status": found["status"].tolist()}
    STORED.parent.mkdir(exist_ok=True)
    text = json.dumps({"format": MAPS, "inputs": known["inputs"], "maps": maps}, separators=(",", ":"))
    STORED.write_text(text.replace('"},"', '"},\n"').replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()
