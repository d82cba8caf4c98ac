"""Names of results in the output folder, made from the entities of a series and the content of a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmri_bidsapp.bids.derivatives import relative_path

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup
    from qmri_bidsapp.core.parameters import Parameter

#: Suffixes that several models write: ``desc`` then contains the model.
SHARED_SUFFIXES = ("S0map",)
#: Labels of tissue segmentations.
TISSUE_LABELS = {"GM": 1, "WM": 2, "CSF": 3}
#: Content of a map of a parameter -> ending of its ``desc``.
ENDINGS = {
    "estimate": "",
    "std": "std",
    "interval_low": "low",
    "interval_high": "high",
    "bias": "bias",
    "truth_low": "truthlow",
    "truth_high": "truthhigh",
    "debiased": "debiased",
}
#: Contents that need a certificate or a posterior.
FURTHER_MAPS = tuple(name for name in ENDINGS if name not in ("estimate", "std"))


def result_name(group: InputGroup, suffix: str, extension: str = ".nii.gz", **entities: str) -> str:
    """Return the name of a result of a series, relative to the output folder; `entities` come beside its own."""
    return relative_path(
        group.subject,
        dict(group.entities),
        datatype=group.row.datatype,
        suffix=suffix,
        extension=extension,
        extra=entities,
    )


def field_names(group: InputGroup) -> tuple[str, str]:
    """Return the names of the field of a series, Hz, and of the displacement by it, relative to the output folder."""
    preproc, displacement = (
        relative_path(
            group.subject,
            dict(group.entities),
            datatype="fmap",
            suffix="fieldmap",
            extension=".nii.gz",
            extra={"desc": desc},
        )
        for desc in ("preproc", "displacement")
    )
    return preproc, displacement


def companion(image: str, extension: str) -> str:
    """Return the name of the file beside a ``.nii.gz`` with this extension, such as its sidecar."""
    return image.removesuffix(".nii.gz") + extension


@dataclass(frozen=True)
class FitNames:
    """Names of all files that one fit may write.

    Attributes
    ----------
    group : InputGroup
    model : str
        Registry name.
    estimator : str
        Label in ``desc``, see `Estimator.label`.
    is_alone : bool
        Whether no other estimator fits the model: then estimates of relaxometry need no ``desc``.
    clashing : frozenset of str
        BIDS suffixes that another model of the same subject would write under the same name.
    """

    group: InputGroup
    model: str
    estimator: str
    is_alone: bool = False
    clashing: frozenset[str] = frozenset()

    @property
    def status(self) -> str:
        """Status map."""
        return self._of_fit("dseg", "status")

    @property
    def usable(self) -> str:
        """Mask of the usable voxels."""
        return self._of_fit("mask", "usable")

    @property
    def trust(self) -> str:
        """Map of `Trust`."""
        return self._of_fit("dseg", "trust")

    @property
    def flag(self) -> str:
        """Map of `Reason`."""
        return self._of_fit("dseg", "flag")

    @property
    def p_value(self) -> str:
        """P-values of the flags."""
        return self._of_fit("pvalue", "flag")

    @property
    def log_evidence(self) -> str:
        """Map of the log evidence."""
        return self._of_fit("logevidence")

    def of(self, parameter: Parameter, what: str) -> str:
        """Return the name of a map of a parameter; `what` is a key of `ENDINGS`.

        Raises
        ------
        ValueError
            If the parameter has no BIDS suffix in relaxometry.
        """
        ending = ENDINGS[what]
        if common := self.group.row.map_suffix:
            entities = {"model": self.model, "param": parameter.label, "desc": f"{self.estimator}{ending}"}
            return result_name(self.group, common, **entities)
        suffix = parameter.bids_suffix
        if suffix is None:
            raise ValueError(f"Parameter {parameter.name} of model {self.model} needs a BIDS suffix, got None.")
        if suffix in SHARED_SUFFIXES or suffix in self.clashing:
            return result_name(self.group, suffix, desc=f"{self.estimator}{self.model}{ending}")
        if self.is_alone and what == "estimate":
            return result_name(self.group, suffix)
        return result_name(self.group, suffix, desc=f"{self.estimator}{ending}")

    def further(self, parameters: Iterable[Parameter]) -> set[str]:
        """Return the names of all maps that need a certificate or a posterior.

        Those that this run does not write are out of date if an earlier run left them.
        """
        found = {self.of(parameter, what) for parameter in parameters for what in FURTHER_MAPS}
        return found | {self.trust, self.flag, self.p_value}

    def _of_fit(self, suffix: str, ending: str = "") -> str:
        # Maps with suffixes of their own have no entity for the model.
        if self.group.row.map_suffix:
            return result_name(self.group, suffix, model=self.model, desc=f"{self.estimator}{ending}")
        return result_name(self.group, suffix, desc=f"{self.estimator}{self.model}{ending}")
