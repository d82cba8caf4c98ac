"""Results of an earlier run of the app: protocols of its fits, and parameters of its voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qmri_bidsapp.bids.record import FitRecord, SubjectRecord
from qmri_bidsapp.bids.record_files import read_record, record_files
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.errors import InputMissingError, ProtocolError
from qmri_bidsapp.estimators.trained import TrainedEstimator
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.registry import load_estimators


@dataclass(frozen=True)
class FoundFit:
    """One fit of an output folder.

    Attributes
    ----------
    folder : Path
        Output folder.
    subject : str
        Label, without ``sub-``.
    acquisition : Acquisition
        Protocol of the series, as the model uses it.
    estimator : str
        Registry name.
    maps : dict
        Parameter -> path of its map, relative to the folder.
    status : str
        Path of the status map.
    tissues : str or None
        Path of the tissue segmentation.
    """

    folder: Path
    subject: str
    acquisition: Acquisition
    estimator: str
    maps: dict[str, str]
    status: str
    tissues: str | None

    def values(self, names: tuple[str, ...], tissue: str | None) -> npt.NDArray[np.float64]:
        """Return (n_voxels, n_names) parameters of the voxels that were fitted, of one tissue or of all."""
        import nibabel as nib

        inside = np.isin(np.asarray(nib.load(self.folder / self.status).dataobj), (Status.OK, Status.AT_BOUND))
        if tissue is not None:
            if self.tissues is None:
                raise InputMissingError(
                    f"sub-{self.subject} in {self.folder} has no tissue segmentation: it has no T1w. Use prior healthy."
                )
            inside &= np.asarray(nib.load(self.folder / self.tissues).dataobj) == TISSUE_LABELS[tissue.upper()]
        columns = [np.asarray(nib.load(self.folder / self.maps[name]).dataobj)[inside] for name in names]
        return np.stack(columns, axis=1).astype(np.float64)


def find_fits(folder: Path, model: SignalModel) -> list[FoundFit]:
    """Return the fits of a model in an output folder of the app, by subject.

    Raises
    ------
    InputMissingError
        If there is none, or a record cannot be read.
    """
    found = []
    for path in record_files(folder):
        record = read_record(path)
        found += [_found(folder, record, model, fit, path) for fit in record.fits if fit.model == model.name]
    if not found:
        raise InputMissingError(
            f"{folder} holds no fit of model {model.name}: it must be an output folder of qmri-bids."
        )
    return found


def _found(folder: Path, record: SubjectRecord, model: SignalModel, fit: FitRecord, path: Path) -> FoundFit:
    series = record.series_of(fit)
    try:
        acquisition = series.acquisition
    except ProtocolError as error:
        raise InputMissingError(f"{path} cannot be used ({error}): run participant {path.stem} again.") from error
    if acquisition is None:
        raise InputMissingError(f"{path} has no protocol of {series.name}: run participant {path.stem} again.")
    return FoundFit(
        folder=folder,
        subject=record.subject,
        acquisition=model.adapt(acquisition)[0],
        estimator=fit.estimator,
        maps={item.parameter: item.estimate for item in fit.maps},
        status=fit.status,
        tissues=series.tissues,
    )


def tissue_of(prior: str) -> str | None:
    """Return the tissue that the name of a training distribution asks for, such as ``healthy-wm``."""
    return prior.partition("-")[2] or None


def samples(fits: list[FoundFit], model: SignalModel, tissue: str | None) -> list[npt.NDArray[np.float64]]:
    """Return the parameters of each subject without the amplitude, from its first fit by an untrained estimator.

    Equal labels in different folders are different subjects. Voxels at a bound are included: a fraction of zero occurs
    in healthy tissue, although a relaxation time at its bound, as in a vessel, does not.

    Parameters
    ----------
    fits : list of FoundFit
    model : SignalModel
    tissue : {"gm", "wm"} or None

    Raises
    ------
    InputMissingError
        If the app writes no maps of some parameters.
    """
    if unsaved := [p.name for p in model.parameters[1:] if not p.saved]:
        raise InputMissingError(f"No maps of {', '.join(unsaved)} are written: use prior uniform for {model.name}.")
    estimators = load_estimators()
    names = tuple(p.name for p in model.parameters[1:])
    bounds = np.array([p.bounds for p in model.parameters[1:]]).T
    first: dict[tuple[Path, str], FoundFit] = {}
    for fit in fits:
        kind = estimators.get(fit.estimator)
        # With several bundles there are maps of other angles, and without one of none.
        if kind is not None and not issubclass(kind, TrainedEstimator) and fit.maps.keys() >= set(names):
            first.setdefault((fit.folder.resolve(), fit.subject), fit)
    # Maps in single precision may lie beyond a bound by rounding.
    return [fit.values(names, tissue).clip(*bounds) for fit in first.values()]
