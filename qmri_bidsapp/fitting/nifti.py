"""Maps as NIfTI images with sidecars, named as in BIDS derivatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.core.acquisition import Diffusion
from qmri_bidsapp.core.maps import Status
from qmri_bidsapp.core.parameters import Parameter
from qmri_bidsapp.errors import OutputError
from qmri_bidsapp.fitting.series import provenance_of
from qmri_bidsapp.fitting.usable import definition, usable_voxels
from qmri_bidsapp.images.volumes import save_image
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason

if TYPE_CHECKING:
    from enum import IntEnum

    from qmri_bidsapp.fitting.maps import Maps, Volumes


def write_maps(maps: Maps, folder: Path, prefix: str, *, with_trust: bool) -> list[Path]:
    """Write all maps of a fit; see `Maps.to_nifti`.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    writer = _Writer(maps, folder, prefix)
    volumes: dict[str, tuple[str, Volumes]] = {"std": ("Standard deviation", maps.std)}
    if with_trust and maps.has_certificate:
        volumes |= {
            "bias": ("Expected bias, given the estimate", maps.bias),
            "truthlow": ("Lower limit (5 %) of the true value, given the estimate", maps.truth_low),
            "truthhigh": ("Upper limit (95 %) of the true value, given the estimate", maps.truth_high),
        }
    for parameter in (p for p in maps.parameters if p.saved):
        writer.quantity(parameter, "", maps[parameter.name], parameter.description)
        for ending, (what, found) in volumes.items():
            if parameter.name in found:
                writer.quantity(parameter, ending, found[parameter.name], f"{what} of: {parameter.description}")
    writer.labels("status", maps.status, "Outcome of the estimation", Status)
    writer.mask("usable", *_usable_of(maps, with_trust=with_trust))
    if with_trust and maps.has_certificate:
        trust = np.full(maps.mask.shape, Trust.OUTSIDE, np.uint8)
        trust[maps.mask] = maps.verdict.reading.trust
        writer.labels("trust", trust, "Outcome of the inverse reading", Trust)
        writer.labels("flag", maps.flag, "Whether and why a voxel is unlike all simulated ones", Reason)
    return writer.written


def _usable_of(maps: Maps, *, with_trust: bool) -> tuple[npt.NDArray[np.bool_], str]:
    """Return the usable voxels and what they are; by the status alone without biases, ranges and flags."""
    has_certificate = with_trust and maps.has_certificate
    usable = maps.usable if has_certificate else usable_voxels(maps.status)
    return usable, f"Usable voxels: 1 where {definition(has_certificate=has_certificate)}"


class _Writer:
    def __init__(self, maps: Maps, folder: Path, prefix: str) -> None:
        model, estimator = maps.estimator.model, maps.estimator
        self.written: list[Path] = []
        self._affine, self._folder, self._prefix = maps.affine, folder, prefix
        self._label, self._model = estimator.label(), model.name
        self._is_diffusion = isinstance(maps.acquisition, Diffusion)
        self._fields = {
            "EstimationAlgorithm": estimator.title,
            "EstimationReference": f"Model: {model.reference}. Estimator: {estimator.reference}",
            "SkullStripped": True,
            "Acquisition": maps.acquisition.to_dict(),
            **provenance_of(estimator),
        }

    def quantity(self, parameter: Parameter, ending: str, values: npt.NDArray[Any], description: str) -> None:
        """Write a map of one quantity."""
        if self._is_diffusion:
            stem = f"model-{self._model}_param-{parameter.label}_desc-{self._label}{ending}_dwimap"
        else:
            desc = f"desc-{self._label}{ending}_" if ending else ""
            stem = f"{desc}{parameter.bids_suffix}"
        self._write(stem, values, {"Description": description, "Units": parameter.unit})

    def labels(self, what: str, values: npt.NDArray[Any], description: str, meanings: type[IntEnum]) -> None:
        """Write a label image, with the meaning of each value."""
        levels = {str(int(item)): item.name for item in meanings}
        self._write(f"{self._of_fit}{what}_dseg", values, {"Description": description, "Levels": levels})

    def mask(self, what: str, values: npt.NDArray[np.bool_], description: str) -> None:
        """Write a mask."""
        self._write(f"{self._of_fit}{what}_mask", values.astype(np.uint8), {"Description": description, "Type": "ROI"})

    @property
    def _of_fit(self) -> str:
        """Start of the names of images that belong to no single quantity."""
        if self._is_diffusion:
            return f"model-{self._model}_desc-{self._label}"
        return f"desc-{self._label}{self._model}"

    def _write(self, stem: str, values: npt.NDArray[Any], fields: dict[str, Any]) -> None:
        path = self._folder / f"{self._prefix}{stem}.nii.gz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_image(nib.Nifti1Image(values, self._affine), path)
            with atomic_file(self._folder / f"{self._prefix}{stem}.json") as temporary:
                temporary.write_text(json.dumps({**fields, **self._fields}, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror or error}).") from error
        self.written.append(path)
