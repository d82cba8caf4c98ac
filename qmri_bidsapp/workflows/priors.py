"""Training distributions of learned estimators from the fits of an earlier run in the output folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmri_bidsapp.errors import InputMissingError, UsageError
from qmri_bidsapp.workflows.base import samples_file
from qmri_bidsapp.workflows.plan import is_learned

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.plan import SubjectPlan


def gather_samples(config: Config, plans: tuple[SubjectPlan, ...]) -> None:
    """Write, for every model with a learned estimator, the parameters that its training distribution is made from.

    All participants with a record in the output folder count, whichever of them are processed now.

    Raises
    ------
    UsageError
        If no learned estimator was chosen, or there are too few participants or voxels.
    InputMissingError
        If there is no fit, or no tissue segmentation although one tissue was requested.
    """
    import numpy as np

    from qmri_bidsapp.bids.earlier_fits import find_fits, samples, tissue_of
    from qmri_bidsapp.core.prior import make_prior
    from qmri_bidsapp.fitting.choice import AUTO
    from qmri_bidsapp.registry import get_model

    if config.prior == "uniform":
        return
    chosen = [item.rpartition(":")[2] for item in config.estimators if item != AUTO]
    if not any(map(is_learned, chosen)):
        raise UsageError(f"--prior {config.prior} has no effect: no estimator is trained; name one with --estimators.")
    pairs = [pair for item in plans for series in item.series for pair in series.fits]
    for name in dict.fromkeys(name for name, estimator in pairs if is_learned(estimator)):
        model, file = get_model(name), samples_file(config, name)
        assert file is not None
        try:
            found = samples(find_fits(config.derivatives_dir, model), model, tissue_of(config.prior))
        except InputMissingError as error:
            raise InputMissingError(
                f"--prior {config.prior} needs the maps of an earlier run: {error} Run first with `--estimators nlls`."
            ) from error
        make_prior(config.prior, model.default_prior(), found)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{f"{index:04d}": part for index, part in enumerate(found)})  # type: ignore[arg-type]
