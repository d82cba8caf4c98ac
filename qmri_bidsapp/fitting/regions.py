"""Statistics of maps over regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.images.volumes import as_volume

if TYPE_CHECKING:
    from qmri_bidsapp.fitting.maps import Maps


def region_rows(maps: Maps, regions: Any, names: Mapping[int, str] | None) -> pd.DataFrame:
    """Return one row per region and saved quantity; see `Maps.table`.

    Raises
    ------
    InputError
        If the labels have another shape than the maps.
    """
    labels = maps.mask.astype(np.int64) if regions is None else np.asarray(as_volume(regions)[0]).astype(np.int64)
    if labels.shape != maps.mask.shape:
        raise InputError(f"The regions have shape {labels.shape}, but the maps have {maps.mask.shape}: resample them.")
    known = dict(names or ({1: "mask"} if regions is None else {}))
    usable = maps.usable
    rows = []
    for label in np.unique(labels[maps.mask & (labels != 0)]).tolist():
        inside = maps.mask & (labels == label)
        for parameter in (p for p in maps.parameters if p.saved):
            values = maps[parameter.name][inside & usable]
            low, median, high = np.percentile(values, [25, 50, 75]) if len(values) else (np.nan,) * 3
            rows.append(
                {
                    "region": known.get(label, str(label)),
                    "quantity": parameter.name,
                    "unit": parameter.unit,
                    "n_voxels": int(inside.sum()),
                    "n_usable": len(values),
                    "mean": float(values.mean(dtype=np.float64)) if len(values) else np.nan,
                    "std": float(values.std(ddof=1, dtype=np.float64)) if len(values) > 1 else np.nan,
                    "median": float(median),
                    "q25": float(low),
                    "q75": float(high),
                }
            )
    return pd.DataFrame(rows)
