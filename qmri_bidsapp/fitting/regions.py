"""Statistics of maps over regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qmri_bidsapp.fitting.inputs import labels_of

if TYPE_CHECKING:
    from qmri_bidsapp.fitting.maps import Maps

COLUMNS = ["region", "quantity", "unit", "n_voxels", "n_usable", "mean", "std", "median", "q25", "q75"]


def region_rows(maps: Maps, regions: Any, names: Mapping[int, str] | None) -> pd.DataFrame:
    """Return one row per region and saved quantity; see `Maps.table`.

    Raises
    ------
    InputError
        If the labels are on another grid than the maps, or are not whole numbers.
    """
    inside_mask = maps.mask.astype(np.int64)
    labels = inside_mask if regions is None else labels_of(regions, maps.mask.shape, maps.affine)
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
    return pd.DataFrame(rows, columns=COLUMNS)
