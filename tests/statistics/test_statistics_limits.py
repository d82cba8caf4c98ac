"""A physical limit is an answer: what is said of fractions on 0 or 1 holds, and their voxels count."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, SphericalMean
from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import on_physical_limits
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.evaluation.standards import shells, standard
from qmri_bidsapp.fitting.usable import usable_voxels
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.uncertainty.certificate import certify

N_VOXELS, SNR, AMPLITUDE = 2000, 30.0, 1000.0
#: Model, protocol, truth, and the parameter of it that lies on a limit.
CASES: dict[str, tuple[str, Acquisition, dict[str, float], str]] = {
    "no free water": ("noddi", shells(6, (1000.0, 30), (2000.0, 60)), {"fwf": 0.0, "ndi": 0.5, "odi": 0.3}, "fwf"),
    "no neurites": ("smt", standard("smt"), {"intra_fraction": 0.0, "diffusivity": 1.2e-3}, "intra_fraction"),
    "neurites only": ("smt", standard("smt"), {"intra_fraction": 1.0, "diffusivity": 1.2e-3}, "intra_fraction"),
}


@cache
def fitted(case: str) -> tuple[ParameterMaps, npt.NDArray[np.float64]]:
    """Maps of voxels whose truth lies on a limit, and that truth."""
    name, protocol, values, _ = CASES[case]
    model = get_model(name)
    everything = {"s0": AMPLITUDE, "theta": 40.0, "phi": 20.0, **values}
    truth = np.array([everything[p.name] for p in model.parameters])
    signal = model.signal(torch.tensor(truth), protocol).numpy()
    sigma, rng = AMPLITUDE / SNR, np.random.default_rng(0)
    noise = rng.standard_normal((N_VOXELS, len(signal))) * sigma / np.sqrt(protocol.n_averages)
    return get_estimator("nlls")(model).fit(protocol).predict(signal + noise, noise_std=sigma), truth


@pytest.mark.parametrize("case", CASES)
def test_an_estimate_on_a_physical_limit_is_an_estimate(case: str) -> None:
    maps, truth = fitted(case)
    column = [p.name for p in maps.parameters].index(CASES[case][3])
    lower, upper = on_physical_limits(maps.parameters, maps.estimate)
    on_limit = (lower | upper)[:, column]
    assert 0.4 < on_limit.mean() < 0.6
    assert (maps.status == Status.OK).mean() > 0.995
    assert np.isnan(maps.std[on_limit, column]).all()
    assert (lower if truth[column] == 0 else upper)[on_limit, column].all()


@pytest.mark.parametrize("case", CASES)
def test_the_deviations_of_the_others_are_those_of_the_fit_on_the_limit(case: str) -> None:
    maps, truth = fitted(case)
    names = [p.name for p in maps.parameters]
    lower, upper = on_physical_limits(maps.parameters, maps.estimate)
    on_limit = (lower | upper)[:, names.index(CASES[case][3])]
    for name in sorted(CASES[case][2].keys() - {CASES[case][3], "odi"}):
        column = names.index(name)
        z = (maps.estimate[on_limit, column] - truth[column]) / maps.std[on_limit, column]
        # Of 1000 voxels: three standard errors.
        assert z.std() == pytest.approx(1, abs=0.07), name
        assert (np.abs(z) < 1.96).mean() == pytest.approx(0.95, abs=0.02), name
        assert abs(z.mean()) < 0.1, name


def test_a_table_over_voxels_without_free_water_has_no_selection_bias() -> None:
    """Free water of exactly zero used to be left out, and with it every voxel whose error made it zero."""
    maps, truth = fitted("no free water")
    fwf, ndi = (maps.estimate[:, [p.name for p in maps.parameters].index(name)] for name in ("fwf", "ndi"))
    usable = usable_voxels(maps.status)
    assert usable.mean() > 0.995
    error = ndi[usable].mean() - truth[2]
    selected = ndi[fwf > 1e-4].mean() - truth[2]
    assert ndi[usable].mean() == pytest.approx(ndi.mean(), abs=1e-4)
    # What is left is that of the constraint: free water cannot be negative.
    assert error < 0.55 * selected
    on_limit = ndi[fwf < 1e-4]
    assert on_limit.mean() == pytest.approx(truth[2], abs=3 * on_limit.std() / np.sqrt(on_limit.size))


@pytest.mark.parametrize("case", ["no free water", "no neurites"])
def test_the_range_of_a_parameter_on_its_limit_is_one_sided_and_holds_the_truth(case: str) -> None:
    maps, truth = fitted(case)
    name, protocol, _, on_its_limit = CASES[case]
    model = get_model(name)
    estimator = get_estimator("nlls")(model).fit(protocol)
    certificate = certify(estimator, protocol, noise=Noise("gaussian", (SNR, SNR)), n=4000, noise_is_known=True)
    space = certificate.space
    reading = certificate.reader.read(maps.estimate[:, space.columns], maps.std[:, space.columns], snr=SNR)
    quantity = [p.name for p in space.parameters].index(on_its_limit)
    column = space.columns[quantity]
    given = np.isfinite(reading.lower[:, quantity])
    on_limit = given & (maps.estimate[:, column] < 1e-5)
    assert given.mean() > 0.98
    assert (reading.lower[on_limit, quantity] == 0).all()
    assert (reading.upper[on_limit, quantity] > 0.01).all()
    holds = (reading.lower[:, quantity] <= truth[column]) & (truth[column] <= reading.upper[:, quantity])
    assert holds[on_limit].all()
    assert holds[given].mean() > 0.9


def test_a_bound_that_the_program_drew_still_marks() -> None:
    """Diffusivity beyond that of free water, and fibres more parallel than an index of 0.01."""
    protocol = SphericalMean((0.0, 1000.0, 2000.0), (12, 32, 32))
    signals = 1000 * np.exp(-np.array([0.0, 1000.0, 2000.0]) * 4e-3)[None]
    maps = get_estimator("nlls")(get_model("smt")).fit(protocol).predict(signals, noise_std=1.0)
    assert maps.status.tolist() == [Status.AT_BOUND]
    assert not usable_voxels(maps.status).any()
    t2 = get_estimator("nlls")(get_model("t2")).fit(standard("t2"))
    assert t2.predict(np.full((1, 6), 100.0), noise_std=1.0).status.tolist() == [Status.AT_BOUND]


def test_every_share_and_fraction_declares_its_limits() -> None:
    for name in ("noddi", "smt", "ivim", "activeax", "zcd"):
        for p in (*get_model(name).parameters, *get_model(name).derived):
            is_fraction = p.unit == "1" and p.bounds == (0.0, 1.0)
            assert p.physical == (True, True) or not is_fraction, f"{name}: {p.name}"
    assert get_model("t2").parameters[1].physical == (False, False)
    assert isinstance(shells(1, (1000.0, 6)), Diffusion)
