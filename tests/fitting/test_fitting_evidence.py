"""What a fit is judged by survives the way through a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from qmri_bidsapp.evaluation.standards import simulate, standard
from qmri_bidsapp.fitting.evidence import Evidence
from qmri_bidsapp.fitting.series import fit_series
from qmri_bidsapp.registry import get_estimator, get_model

SHAPE = (6, 5, 4)


def test_evidence_is_read_as_it_was_written(tmp_path: Path) -> None:
    data = simulate(get_model("t2"), standard("t2"), int(np.prod(SHAPE))).reshape(*SHAPE, -1)
    mask = np.ones(SHAPE, dtype=bool)
    fit = fit_series(get_estimator("nlls")(get_model("t2")), data, mask, standard("t2"), with_evidence=True)
    assert fit.evidence is not None
    found = Evidence.load(fit.evidence.save(tmp_path / "evidence.npz"))
    assert (found.snr, found.noise_is_given, found.floor_removed) == (fit.evidence.snr, False, False)
    np.testing.assert_array_equal(found.noise_std, fit.evidence.noise_std)
    for field in fields(found.measures):
        own, read = (getattr(item.measures, field.name) for item in (fit.evidence, found))
        np.testing.assert_array_equal(own, read)


def test_the_ratio_of_a_voxel_is_its_reference_over_the_noise() -> None:
    """The reference of echoes is the largest; the noise is that of the residuals, the same for all voxels."""
    data = simulate(get_model("t2"), standard("t2"), int(np.prod(SHAPE))).reshape(*SHAPE, -1)
    mask = np.ones(SHAPE, dtype=bool)
    fit = fit_series(get_estimator("nlls")(get_model("t2")), data, mask, standard("t2"), with_evidence=True)
    assert fit.evidence is not None
    assert np.ptp(fit.evidence.noise_std) == 0
    np.testing.assert_allclose(fit.evidence.voxel_snr, data[mask].max(axis=1) / fit.evidence.noise_std[0], rtol=1e-6)
