"""What was found for a subject: groups of files that are processed together, and the problems met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qmri_bidsapp.bids.fieldmaps import CovariateMap
from qmri_bidsapp.bids.parts import Complement
from qmri_bidsapp.core.acquisition import Acquisition


@dataclass(frozen=True)
class InputGroup:
    """Files that are processed together.

    Attributes
    ----------
    kind : str
        BIDS suffix.
    subject : str
        Label, without ``sub-``.
    entities : tuple of (str, str)
        BIDS keys and labels that all files share, in BIDS order, without ``sub``.
    files : tuple of str
        Absolute paths, by ascending inversion or echo time, or as `series_protocol` orders them.
    acquisition : Acquisition or None
        Protocol; None for a T1w.
    bval, bvec : str or None
        Gradient table of a diffusion series.
    metadata : tuple of (str, object)
        Sidecar fields worth showing.
    covariates : tuple of CovariateMap
        Maps of what is known of each voxel.
    complement : Complement or None
        What makes the images complex, where that is used.
    """

    kind: str
    subject: str
    entities: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    acquisition: Acquisition | None = None
    bval: str | None = None
    bvec: str | None = None
    metadata: tuple[tuple[str, Any], ...] = ()
    covariates: tuple[CovariateMap, ...] = ()
    complement: Complement | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """All images of the series, with those that make them complex."""
        return (*self.files, *(self.complement.files if self.complement else ()))

    @property
    def all_files(self) -> tuple[str, ...]:
        """Everything that is read for the series."""
        gradients = (name for name in (self.bval, self.bvec) if name)
        return (*self.images, *gradients, *(item.file for item in self.covariates))

    @property
    def name(self) -> str:
        """Short name, such as ``ses-01_run-1_IRT1``."""
        return "_".join([*(f"{key}-{value}" for key, value in self.entities), self.kind])


@dataclass(frozen=True)
class Problem:
    """Something about a subject's data that the user should know.

    Attributes
    ----------
    severity : str
        ``"error"``: a series cannot be used, the subject counts as failed. ``"note"``: nothing is wrong.
    """

    subject: str
    kind: str
    file: str
    message: str
    severity: str = "error"


@dataclass(frozen=True)
class SubjectInputs:
    """What was found for one subject."""

    subject: str
    groups: tuple[InputGroup, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def has_errors(self) -> bool:
        """Whether a series had to be left out."""
        return any(problem.severity == "error" for problem in self.problems)
