"""Fibre directions: against DIPY's matrices, an exact solver, and simulated tissue of known directions."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.models.directions import angles_of
from qmri_bidsapp.models.noddi import Noddi
from qmri_bidsapp.preprocess.fibre_directions import (
    Responses,
    deconvolve,
    design_matrix,
    estimate_responses,
    find_orientations,
    order_of,
    refusal,
)
from qmri_bidsapp.solvers.inequality_least_squares import non_negative_least_squares

SNR = 30
#: Fully dispersed fibres of low density, and free water.
GREY, FLUID = (0.0, 0.4, 1.0), (1.0, 0.5, 0.5)
WHITE = (0.05, 0.6, 0.1)


def directions(n: int, seed: int = 0) -> np.ndarray:
    from dipy.core.sphere import disperse_charges_alt

    start = np.random.default_rng(seed).standard_normal((n, 3))
    spread = np.asarray(disperse_charges_alt(start / np.linalg.norm(start, axis=1, keepdims=True), 300))
    return spread / np.linalg.norm(spread, axis=1, keepdims=True)


def protocol(*shells: tuple[float, int]) -> Diffusion:
    parts = [(0.0, np.zeros((6, 3)))] + [(b, directions(n, seed=i)) for i, (b, n) in enumerate(shells)]
    b_value = tuple(b for b, rows in parts for _ in range(len(rows)))
    return Diffusion(b_value, tuple(map(tuple, np.concatenate([rows for _, rows in parts]))))


TWO_SHELLS = protocol((1000.0, 32), (2500.0, 64))


def axes(*angles: float) -> np.ndarray:
    """(n, 3) unit vectors in one plane, at these angles."""
    radian = np.deg2rad(angles)
    return np.stack([np.sin(radian), 0 * radian, np.cos(radian)], axis=-1)


FIBRES = {
    "grey": np.zeros((0, 3)),
    "fluid": np.zeros((0, 3)),
    "one": axes(0.0),
    "two-90": axes(0.0, 90.0),
    "two-60": axes(0.0, 60.0),
    "three-90": np.eye(3),
}


def simulate(
    kind: str, n: int, seed: int = 0, acquisition: Diffusion = TWO_SHELLS, gain: float = 700.0
) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes (n, n_measurements) with Rician noise, and directions (n, k, 3), turned at random."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    mu = FIBRES[kind] @ Rotation.random(n, random_state=seed).as_matrix()
    k = mu.shape[1]
    tissue = {"grey": GREY, "fluid": FLUID}.get(kind, WHITE)
    model = Noddi.with_bundles(max(1, k))()
    shares = [1 / (k - i) for i in range(k - 1)]
    angles = angles_of(torch.tensor(mu)).numpy().reshape(n, -1) if k else np.zeros((n, 2))
    theta = np.concatenate([np.tile([1.0, *tissue, *shares], (n, 1)), angles], axis=1)
    clean = model.signal(torch.tensor(theta), acquisition).numpy()
    noise = rng.standard_normal((2, *clean.shape)) / SNR
    return gain * np.hypot(clean + noise[0], noise[1]), mu


@pytest.fixture(scope="module")
def responses() -> Responses:
    tissue = [simulate(kind, 300, seed=i)[0] for i, kind in enumerate(("one", "fluid", "grey"))]
    found, notes = estimate_responses(np.concatenate(tissue), TWO_SHELLS, 8)
    assert notes == []
    return found


def errors(vectors: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angle of each found direction to the nearest true one, degree."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    cosine = np.abs(np.einsum("nik,njk->nij", unit, truth)).max(-1)
    return np.rad2deg(np.arccos(cosine.clip(0, 1)))


@pytest.mark.parametrize(
    ("kind", "least", "angle"),
    [
        ("fluid", 0.98, None),
        ("grey", 0.90, None),
        ("one", 0.98, 2.5),
        ("two-90", 0.95, 4.0),
        ("two-60", 0.90, 7.0),
        ("three-90", 0.85, 6.5),
    ],
)
def test_number_and_directions(responses: Responses, kind: str, least: float, angle: float | None) -> None:
    signals, mu = simulate(kind, 250, seed=7)
    count, found = deconvolve(signals, TWO_SHELLS, responses)
    right = count == mu.shape[1]
    assert right.mean() >= least
    assert (np.isfinite(found).all(-1).sum(-1) == count).all()
    if angle is not None:
        assert np.median(errors(found[right, : mu.shape[1]], mu[right])) < angle


def test_the_gain_of_the_receiver_does_not_matter(responses: Responses) -> None:
    signals, _ = simulate("two-90", 50, seed=3)
    first, second = (deconvolve(gain * signals, TWO_SHELLS, responses) for gain in (1.0, 0.25))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], rtol=0.03, atol=0.01)


def test_one_shell_has_no_grey_matter() -> None:
    acquisition = protocol((2500.0, 64))
    tissue = [simulate(kind, 200, seed=i, acquisition=acquisition)[0] for i, kind in enumerate(("one", "fluid"))]
    found, _ = estimate_responses(np.concatenate(tissue), acquisition, 8)
    assert found.isotropic.shape == (1, 2)
    for kind in ("fluid", "one", "two-90"):
        signals, mu = simulate(kind, 100, seed=5, acquisition=acquisition)
        assert (deconvolve(signals, acquisition, found)[0] == mu.shape[1]).mean() > 0.9


def test_response_is_that_of_the_tissue(responses: Responses) -> None:
    """The Legendre coefficients of NODDI, but for the noise floor and the 1 to 2 degrees that directions are off."""
    model = Noddi()
    tissue = torch.tensor([WHITE], dtype=torch.float64)
    expected = model.series(tissue, model.layout(TWO_SHELLS, tissue))[0, :, :3].numpy()
    np.testing.assert_allclose(responses.fibre[:, :3], expected, atol=0.02)
    assert responses.scale == pytest.approx(700, rel=0.01)


def test_design_agrees_with_dipy(responses: Responses) -> None:
    from dipy.core.gradients import gradient_table
    from dipy.reconst.mcsd import MultiShellDeconvModel, MultiShellResponse

    order = 8
    harmonic = responses.fibre * np.sqrt(4 * np.pi / (2 * np.arange(0, order + 1, 2) + 1))
    constant = 1 / np.sqrt(4 * np.pi)
    kernel = MultiShellResponse(
        np.column_stack([responses.isotropic.T / constant, harmonic]), order, np.array([0.0, 1000.0, 2500.0])
    )
    table = gradient_table(np.array(TWO_SHELLS.b_value), bvecs=np.array(TWO_SHELLS.direction))
    with warnings.catch_warnings():
        # Its basis is the one with other signs, which is to change.
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        model = MultiShellDeconvModel(table, kernel, sh_order_max=order, iso=2)
    theirs = model.predict(np.eye(47)).T
    ours = design_matrix(TWO_SHELLS, responses)
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2] * constant, atol=1e-9)
    np.testing.assert_allclose(np.abs(ours[:, 2:]), np.abs(theirs[:, 2:]), atol=1e-6)


def test_constrained_solution_is_the_exact_one(responses: Responses) -> None:
    """Against the dual problem, solved by an active set."""
    from dipy.core.sphere import HemiSphere
    from dipy.data import default_sphere
    from dipy.reconst.shm import real_sh_descoteaux

    design = design_matrix(TWO_SHELLS, responses)
    sphere = HemiSphere.from_sphere(default_sphere)
    basis = real_sh_descoteaux(8, sphere.theta, sphere.phi, legacy=False)[0]
    constraint = np.zeros((2 + len(basis), 47))
    constraint[:2, :2], constraint[2:, 2:] = np.eye(2), basis
    signals = simulate("two-60", 6, seed=2)[0] / responses.scale
    found = non_negative_least_squares(design, signals, constraint)
    factor = np.linalg.cholesky(design.T @ design)
    half = np.linalg.solve(factor, constraint.T)
    for signal, coefficients in zip(signals, found, strict=True):
        linear = design.T @ signal
        multipliers, _ = nnls(half, -np.linalg.solve(factor, linear), maxiter=5000)
        exact = np.linalg.solve(design.T @ design, linear + constraint.T @ multipliers)
        highest = (constraint @ exact).max()
        assert np.abs(constraint @ (coefficients - exact)).max() < 0.08 * highest
        assert (constraint @ coefficients).min() > -0.01 * highest
        residual, least = (np.sum((signal - design @ c) ** 2) for c in (coefficients, exact))
        assert residual == pytest.approx(least, rel=0.02)


def test_images(responses: Responses) -> None:
    kinds = ["one"] * 4 + ["two-90"] * 2 + ["fluid", "grey"]
    data = np.stack([simulate(kind, 40, seed=i)[0] for i, kind in enumerate(kinds)]).astype(np.float32)
    data = data.reshape(4, 2, 40, -1)
    mask = np.ones(data.shape[:3], dtype=bool)
    mask[0, 0, 0], data[0, 0, 1, 5], data[0, 0, 2] = False, np.nan, 0.0
    tissues = np.full(mask.shape, 2, dtype=np.uint8)
    tissues[3, 0], tissues[3, 1] = 3, 1
    for labels in (None, tissues):
        found = find_orientations(data, mask, TWO_SHELLS, labels)
        assert np.isnan(found.n_fibres[0, 0, :3]).all()
        assert np.isnan(found.directions[0, 0, :3]).all()
        expected = np.array([1, 1, 1, 1, 2, 2, 0, 0]).reshape(4, 2)
        np.testing.assert_array_equal(np.nanmedian(found.n_fibres, axis=2), expected)
        assert found.notes == []


def test_missing_tissue_is_noted() -> None:
    _, notes = estimate_responses(simulate("one", 50)[0], TWO_SHELLS, 8)
    assert [note.partition(" was found")[0] for note in notes] == ["No voxel of fluid", "No voxel of grey matter"]
    with pytest.raises(InputError, match="No voxel of the series has anisotropic"):
        estimate_responses(simulate("fluid", 20)[0], TWO_SHELLS, 8)


def test_few_directions_are_refused() -> None:
    assert refusal(TWO_SHELLS) is None
    assert "15 directions, got 12" in str(refusal(protocol((1000.0, 6), (2000.0, 6))))
    assert (
        refusal(
            replace(
                TWO_SHELLS,
                b_value=tuple(max(b, 100.0) for b in TWO_SHELLS.b_value[6:]),
                direction=TWO_SHELLS.direction[6:],
            )
        )
        is not None
    )
    orders = [order_of(protocol((1000.0, n // 2), (2000.0, n - n // 2))) for n in (15, 27, 28, 45)]
    assert orders == [4, 4, 6, 8]
