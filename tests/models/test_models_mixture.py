from __future__ import annotations

import pytest
import torch

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.models.activeax import ActiveAx
from qmri_bidsapp.models.compartments import ODI, Ball, Stick, Watson, Zeppelin
from qmri_bidsapp.models.compose import Composition
from qmri_bidsapp.models.mixture import Mixture
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.models.zcd import ZeppelinCylinderDot


class Nested(Composition):
    """A share that is not linear before one that is."""

    name = "nested"
    title = "Nested"
    reference = "None"
    compartments = (
        Watson(Stick(1.7e-3), ODI),
        Ball(3e-3),
        Zeppelin(1.7e-3, lambda values: 1.7e-3 * (1 - values["stick_fraction"])),
    )


MODELS = {cls.name: cls for cls in (Noddi, ActiveAx, ZeppelinCylinderDot, Nested)}


def protocol() -> Diffusion:
    vectors = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes = tuple(map(tuple, (vectors / vectors.norm(dim=1, keepdim=True)).tolist()))
    return Diffusion((0.0,) * 2 + (1000.0,) * 19 + (3000.0,) * 19, axes, 0.01, 0.03)


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("noddi", ["fwf"]),
        ("activeax", ["csf_fraction", "dot_share"]),
        ("zcd", ["dot_fraction", "intra_share"]),
        ("nested", ["ball_share"]),
    ],
)
def test_shares_are_linear_unless_a_compartment_depends_on_them(name: str, linear: list[str]) -> None:
    model = MODELS[name]()
    mixture = Mixture(model)
    assert [model.parameters[i].name for i in mixture.linear] == linear
    assert sorted((0, *mixture.linear, *mixture.nonlinear)) == list(range(len(model.parameters)))


@pytest.mark.parametrize("n_bundles", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_signals_are_mixtures_of_their_corners(name: str, n_bundles: int) -> None:
    """The signal of amounts c is the sum of c times the corners, and c leads back to S0 and the shares."""
    model = MODELS[name].with_bundles(n_bundles)()
    mixture = Mixture(model)
    generator = torch.Generator().manual_seed(1)
    low, high = torch.tensor([p.bounds for p in model.parameters], dtype=torch.float64).T
    theta = low + (high - low) * torch.rand((6, len(low)), generator=generator, dtype=torch.float64)
    amounts = torch.rand((6, len(mixture.linear) + 1), generator=generator, dtype=torch.float64)
    corners = model.signal(mixture.corners(theta), protocol())
    combined = mixture.combine(theta, amounts)
    expected = (amounts.unsqueeze(-1) * corners).sum(1)
    torch.testing.assert_close(model.signal(combined, protocol()), expected)
    assert (combined[:, list(mixture.nonlinear)] == theta[:, list(mixture.nonlinear)]).all()


def test_a_share_of_nothing_is_defined() -> None:
    theta = torch.zeros(1, len(ActiveAx.parameters))
    combined = Mixture(ActiveAx()).combine(theta, torch.tensor([[2.0, 0.0, 0.0]]))
    assert combined[0, :3].tolist() == [2.0, 1.0, 0.5]
