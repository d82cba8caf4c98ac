"""Coverage of 95 % intervals of T2 with noise from residuals, moderated over the series.

Six echoes of simulated magnitudes: first by signal-to-noise ratio, in tissue and in fluid; then with noise that varies
over the series, in tissue. Voxels without a standard deviation are excluded; their percentage is in brackets.

    python benchmarks/residual_noise.py
"""

from __future__ import annotations

import numpy as np

from qmri_bidsapp.core.acquisition import MultiEcho
from qmri_bidsapp.fitting.series import fit_series, make_estimator

ECHOES = MultiEcho((0.0125, 0.025, 0.05, 0.08, 0.12, 0.2))
N_VOXELS = 10_000
TISSUE, FLUID = (0.04, 0.12), (1.5, 2.5)  # s


def coverage(estimator: str, times: tuple[float, float], noise: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Return percentages of covered voxels and of those without a standard deviation, and a mask of covered ones.

    `noise` is (n_voxels,), relative to the signal without relaxation.
    """
    rng = np.random.default_rng(0)
    truth = rng.uniform(*times, len(noise))
    clean = np.exp(-np.array(ECHOES.echo_time) / truth[:, None])
    error = rng.standard_normal(clean.shape) + 1j * rng.standard_normal(clean.shape)
    series = np.abs(clean + noise[:, None] * error)[:, None, None]
    maps = fit_series(make_estimator("t2", estimator), series, np.ones(series.shape[:3], dtype=bool), ECHOES).maps
    std = maps.std[:, 1]
    inside = np.abs(maps.estimate[:, 1] - truth) < 1.96 * std
    is_known = np.isfinite(std)
    return 100 * inside[is_known].mean(), 100 * (~is_known).mean(), inside


def main() -> None:
    """Print both tables."""
    for times in (TISSUE, FLUID):
        for snr in (50, 20, 10, 3):
            found = [coverage(name, times, np.full(N_VOXELS, 1 / snr)) for name in ("nlls", "rician")]
            print(times, snr, *(f"{covered:.1f} ({without:.0f})" for covered, without, _ in found), flush=True)
    rng = np.random.default_rng(1)
    louder = rng.random(N_VOXELS) < 0.3
    for what, factor in {
        "the same": np.ones(N_VOXELS),
        "varying by a quarter": np.exp(0.25 * rng.standard_normal(N_VOXELS)),
        "twice as large in 30 %": 1.0 + louder,
    }.items():
        for name in ("nlls", "rician"):
            covered, _, inside = coverage(name, TISSUE, factor / 50)
            print(
                f"{what}, {name}: {covered:.1f}; where the noise is doubled: {100 * inside[louder].mean():.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
