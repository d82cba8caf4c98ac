"""False positives, coverage and power of the correction for motion, on simulated cohorts.

Few participants move much (gamma distribution, mean 0.8 mm, at most 4 mm). Two sessions of a participant are similar.
The spread of the measure is 1 (even), 8 in one of ten participants (outliers), or doubles with 1.8 mm of motion
(growing).

    python benchmarks/motion_correction.py --cohorts 2000
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import stats

from qmri_bidsapp.group.regression import Slope, regress


def cohort(
    rng: np.random.Generator, n: int, slope: float, noise: str, n_sessions: int, with_covariates: bool
) -> tuple[np.ndarray, ...]:
    """Return values, motion, covariates (age, sex, three sites) and participants."""
    people = np.repeat(np.arange(n), n_sessions)
    motion = rng.gamma(2.0, 0.4, n)[people] * (rng.gamma(6.0, 1 / 6, people.size) if n_sessions > 1 else 1.0)
    motion = np.clip(motion, 0, 4)
    site = np.arange(n) % 3
    covariates = np.column_stack([rng.uniform(20, 80, n), rng.permutation(n) % 2, site == 1, site == 2]).astype(float)
    error = rng.standard_normal(n) * (np.where(rng.random(n) < 0.1, 8.0, 1.0) if noise == "outliers" else 1.0)
    error = error[people] + (0.5 * rng.standard_normal(people.size) if n_sessions > 1 else 0.0)
    if noise == "growing":
        error = error * (1 + motion / 1.8)
    return 3 + slope * motion + error, motion, covariates[people][:, : 4 * with_covariates], people


def main() -> None:
    """Print a Markdown table: rates in percent, number of participants n."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--slope", type=float, default=-0.8, help="for bias, coverage and power")
    arguments = parser.parse_args()
    header = (
        "n",
        "sessions",
        "spread",
        "covariates",
        "false positives",
        "of OLS",
        "bias",
        "coverage",
        "power",
    )
    print("|", *(f"{name} |" for name in (*header, "of OLS")))
    print("|", *("--- |" for _ in (*header, "of OLS")))
    cases = [(noise, 1, False) for noise in ("even", "outliers", "growing")] + [("even", 1, True), ("even", 2, False)]
    for n in (20, 50, 200):
        for noise, n_sessions, with_covariates in cases:
            rng = np.random.default_rng(0)
            lines: dict[float, list[Slope]] = {0.0: [], arguments.slope: []}
            plain: dict[float, list[bool]] = {0.0: [], arguments.slope: []}
            for _ in range(arguments.cohorts):
                for slope in lines:
                    drawn = cohort(rng, n, slope, noise, n_sessions, with_covariates)
                    lines[slope].append(regress(*drawn))
                    plain[slope].append(stats.linregress(drawn[1], drawn[0]).pvalue < 0.05)
            found = lines[arguments.slope]
            covered = np.mean([line.low <= arguments.slope <= line.high for line in found])
            bias = np.mean([line.slope for line in found]) - arguments.slope
            false, power = (
                (
                    percent([line.p_value < 0.05 for line in lines[slope]]),
                    "" if with_covariates else percent(plain[slope]),
                )
                for slope in lines
            )
            words = [
                n,
                n_sessions,
                noise,
                "yes" if with_covariates else "no",
                *false,
                f"{bias:+.3f}",
                f"{100 * covered:.1f}",
            ]
            print("|", *(f"{word} |" for word in [*words, *power]), flush=True)


def percent(hits: list[bool]) -> str:
    """Return the percentage of hits."""
    return f"{100 * np.mean(hits):.1f}"


if __name__ == "__main__":
    main()
