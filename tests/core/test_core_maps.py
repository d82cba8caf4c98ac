from __future__ import annotations

import numpy as np
import pytest

from qmri_bidsapp.core.maps import ParameterMaps, Status
from qmri_bidsapp.core.parameters import Parameter

T1 = Parameter("t1", "s", (0.01, 6.0), 1.0, "T1")


def test_counts_name_the_statuses_that_occur() -> None:
    values = np.zeros((3, 1), np.float32)
    status = np.array([Status.OK, Status.AT_BOUND, Status.OK], dtype=np.uint8)
    assert ParameterMaps((T1,), values, values, "none", status).counts() == {"OK": 2, "AT_BOUND": 1}


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must both have shape"):
        ParameterMaps((T1,), np.zeros((3, 2), np.float32), np.zeros((3, 1), np.float32), "none", np.ones(3, np.uint8))


def test_label_is_fit_for_a_file_name() -> None:
    assert Parameter("intra_fraction", "1", (0, 1), 1.0, "v").label == "intrafraction"
