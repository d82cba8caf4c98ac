"""Signal in the air: nothing without ghosts, and in the slices where they are."""

from __future__ import annotations

import numpy as np
from helpers.heads import made_up_head

from qmri_bidsapp.motion.air import signal_in_air

HEAD, AFFINE = made_up_head()
SIZE = np.full(3, 2.4)


def test_a_ghost_is_found_in_its_slices_with_its_strength():
    volume = HEAD.numpy().astype(float)
    still = signal_in_air(volume, SIZE)
    known = np.isfinite(still)
    assert known.sum() > 50
    assert np.nanmax(still) < 3  # noise alone
    ghost = volume.copy()
    ghost[:, :, 50:55] += np.where(ghost[:, :, 50:55] < 10, 5.0, 0.0)
    found = signal_in_air(ghost, SIZE)
    assert set(np.argsort(-np.nan_to_num(found))[:5]) == set(range(50, 55))
    # In percent of the median of the head, most of which is grey (60) and white matter (100).
    assert 5 < (found[50:55] - still[50:55]).mean() < 100 * 5 / 60


def test_zeros_of_stored_integers_count_as_measured():
    volume = np.round(HEAD.numpy() / 4)  # most of the air is 0 now, but not all
    exact = signal_in_air(HEAD.numpy(), SIZE)
    found = signal_in_air(volume, SIZE)
    both = np.isfinite(exact) & np.isfinite(found)
    assert both.sum() > 50
    assert np.abs(found - exact)[both].max() < 1.5


def test_blanked_air_and_no_head_give_nothing():
    blanked = np.where(HEAD.numpy() < 12, 0.0, HEAD.numpy())
    assert np.isnan(signal_in_air(blanked, SIZE)).all()
    assert np.isnan(signal_in_air(np.zeros((20, 20, 5)), SIZE)).all()
