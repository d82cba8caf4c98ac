"""Which voxels of a fit count, and which are flagged."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason


def usable_voxels(
    status: npt.NDArray[np.integer[Any]],
    trust: npt.NDArray[np.integer[Any]] | None = None,
    flag: npt.NDArray[np.integer[Any]] | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which voxels count: those with status OK and a range that are not flagged.

    Parameters
    ----------
    status : ndarray
        Values of `Status`.
    trust, flag : ndarray, optional
        Of the same shape: values of `Trust` and of `Reason`. Without a certificate there are none, and the status
        decides.
    """
    usable = status == Status.OK
    if trust is not None:
        usable &= (trust == Trust.RANGE_GIVEN) | (trust == Trust.WIDE)
    if flag is not None:
        usable &= flag == Reason.TYPICAL
    return usable


def unlike_voxels(trust: npt.NDArray[np.integer[Any]], flag: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Return which voxels are unlike all simulated ones: flagged, or no simulated voxel has a similar estimate.

    Parameters
    ----------
    trust, flag : ndarray
        As for `usable_voxels`.
    """
    return (trust == Trust.UNLIKE) | ((flag > Reason.TYPICAL) & (flag < Reason.NO_ESTIMATE))
