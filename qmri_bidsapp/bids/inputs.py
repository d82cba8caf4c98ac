"""What was found for a subject: groups of files that are processed together, and the problems met."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qmri_bidsapp.bids.epi import Epi
from qmri_bidsapp.bids.fieldmaps import CovariateMap
from qmri_bidsapp.bids.kinds import Kind, load_kinds
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
        Absolute paths, in the order of the acquisition; see `bids.sidecars.series_protocol`.
    acquisition : Acquisition or None
        Protocol; None for a T1w.
    gradients : tuple of str
        Gradient tables of a diffusion series: b-values, then directions, of each file.
    metadata : tuple of (str, object)
        Sidecar fields of the first image that reports show.
    kept : tuple of (str, object)
        Sidecar fields that hold for all images and that preprocessed images keep; see `bids.kinds.KEPT_FIELDS`.
    covariates : tuple of CovariateMap
        Maps of known quantities that models of the series use.
    complement : Complement or None
        Phase or imaginary parts that restore the polarity, where they are used.
    shape : tuple of int
        Shape of one file, from its header; of all volumes of a diffusion series.
    epi : Epi or None
        Phase encoding of a diffusion series, and what corrects its distortion.
    """

    kind: str
    subject: str
    entities: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    acquisition: Acquisition | None = None
    gradients: tuple[str, ...] = ()
    metadata: tuple[tuple[str, Any], ...] = ()
    kept: tuple[tuple[str, Any], ...] = ()
    covariates: tuple[CovariateMap, ...] = ()
    complement: Complement | None = None
    shape: tuple[int, ...] = ()
    epi: Epi | None = None

    @property
    def row(self) -> Kind:
        """Row of the suffix in `bids.kinds`."""
        return load_kinds()[self.kind]

    @property
    def size_gb(self) -> float:
        """Size of the series in memory as float32, GB (2**30 bytes)."""
        n_volumes = self.acquisition.n_measurements if self.acquisition else 1
        return 4 * n_volumes * math.prod(self.shape[:3]) / 1024**3

    @property
    def images(self) -> tuple[str, ...]:
        """All images of the series, with those that restore its polarity."""
        return (*self.files, *(self.complement.files if self.complement else ()))

    @property
    def all_files(self) -> tuple[str, ...]:
        """Everything that is read for the series."""
        source = self.epi.source if self.epi else None
        fields = source.all_files if source else ()
        return (*self.images, *self.gradients, *(item.file for item in self.covariates), *fields)

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
