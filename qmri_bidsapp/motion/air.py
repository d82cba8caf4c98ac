"""Signal in the air beside the head, by slice: shows ghosts and ringing without a network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, binary_fill_holes, gaussian_filter, label, maximum_filter

from qmri_bidsapp.motion.displacement import Floats

#: Smoothing before the threshold, and width of the excluded border about the head, mm.
SMOOTHING, BORDER = 2.0, 10.0
#: Intensity above which a voxel belongs to the head, in units of the 99th percentile of the smoothed image. Ghosts may
#: count: only the largest connected part is the head.
THRESHOLD = 0.12
#: A voxel counts as blanked if this square about it, in the slice, is zero: side in voxels.
BLANK = 5
#: Least number of voxels of air in a slice.
LEAST_AIR = 200


def signal_in_air(volume: npt.NDArray[np.floating], voxel_size: Floats) -> Floats:
    """Return the mean signal in the air of each axial slice, in percent of the head's median.

    Voxels whose neighbours are all zero are excluded: they were blanked. Flow, wrap-around and noise add signal as
    motion does, and N4 or a normalisation by the scanner scales air and head alike.

    Parameters
    ----------
    volume : ndarray
        (x, y, z) towards right, anterior, superior.
    voxel_size : ndarray
        (3,) mm.

    Returns
    -------
    ndarray
        (z,); NaN where a slice contains no head, or too little air.
    """
    smooth = gaussian_filter(np.nan_to_num(volume).astype(np.float32), SMOOTHING / voxel_size)
    parts, _ = label(smooth > THRESHOLD * np.quantile(smooth, 0.99))
    sizes = np.bincount(parts.ravel())
    found = np.full(volume.shape[2], np.nan)
    if len(sizes) < 2:
        return found
    head = parts == 1 + int(np.argmax(sizes[1:]))
    typical = float(np.median(volume[head]))
    if not typical > 0:
        return found
    known = maximum_filter(np.nan_to_num(volume), (BLANK, BLANK, 1)) != 0
    reach = np.maximum(1, np.round(BORDER / voxel_size[:2])).astype(int)
    near = np.ones((2 * reach[0] + 1, 2 * reach[1] + 1), dtype=bool)
    for k in range(volume.shape[2]):
        if not head[:, :, k].any():
            continue
        inside = binary_dilation(binary_fill_holes(head[:, :, k]), near)
        air = volume[:, :, k][~inside & known[:, :, k] & np.isfinite(volume[:, :, k])]
        if len(air) >= LEAST_AIR:
            found[k] = 100 * float(air.mean()) / typical
    return found
