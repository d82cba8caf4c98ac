from __future__ import annotations

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.estimators.covariance import standard_deviations
from qmri_bidsapp.estimators.linear import WeightedLinearLeastSquares
from qmri_bidsapp.models.tensor import DiffusionTensor


def test_a_fractional_anisotropy_cut_off_at_one_has_no_std() -> None:
    """One eigenvalue is negative, as noise makes it: the formula gives more than one."""
    theta = torch.tensor([[1.0, 2e-3, 0.0, -2e-4, 0.0, 0.0, -2e-4]], dtype=torch.float64)
    covariance = 1e-10 * torch.eye(7, dtype=torch.float64).unsqueeze(0)
    std = standard_deviations(DiffusionTensor(), theta, covariance, torch.ones_like(theta, dtype=torch.bool)).numpy()
    names = [p.name for p in (*DiffusionTensor.parameters, *DiffusionTensor.derived)]
    assert np.isnan(std[0, names.index("fa")])
    assert std[0, names.index("md")] > 0


def test_an_element_beyond_its_bound_is_held_there_and_has_no_std() -> None:
    """A signal that grows with b, as no tissue has: Dxx = -4e-3 mm2/s, the other diffusivities 1e-3."""
    directions = np.random.default_rng(0).standard_normal((40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    protocol = Diffusion((0.0,) * 2 + (1000.0,) * 40, ((0.0,) * 3,) * 2 + tuple(map(tuple, directions)))
    diffusivity = (directions**2) @ [-4e-3, 1e-3, 1e-3]
    signals = 100 * np.exp(np.r_[0, 0, -1000 * diffusivity])
    maps = WeightedLinearLeastSquares(DiffusionTensor()).fit(protocol).predict(signals[None], noise_std=1.0)
    found = {p.name: (maps.estimate[0, i], maps.std[0, i]) for i, p in enumerate(maps.parameters)}
    assert maps.status[0] == Status.AT_BOUND
    np.testing.assert_allclose(found["dxx"][0], -3e-3, rtol=1e-6)
    np.testing.assert_allclose(found["dyy"][0], 1e-3, rtol=0.01)
    assert np.isnan([found[name][1] for name in ("dxx", "fa", "md")]).all()
    assert np.isfinite([found[name][1] for name in ("s0", "dyy", "dzz")]).all()
