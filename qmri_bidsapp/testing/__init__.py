"""Contract tests for models and estimators, those of plug-ins as well.

`check_model` and `check_estimator` run all checks. `MODEL_CHECKS` and `ESTIMATOR_CHECKS` are the single checks, for a
test with one result each.
"""

from __future__ import annotations

from qmri_bidsapp.testing.estimators import ESTIMATOR_CHECKS, EstimatorCase, check_estimator
from qmri_bidsapp.testing.models import MODEL_CHECKS, ModelCase, check_model

__all__ = [
    "ESTIMATOR_CHECKS",
    "MODEL_CHECKS",
    "EstimatorCase",
    "ModelCase",
    "check_estimator",
    "check_model",
]
