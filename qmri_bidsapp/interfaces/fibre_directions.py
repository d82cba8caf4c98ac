"""Node: number and directions of fibres."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.interfaces.preprocess import defined


class _OrientationInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="4-D diffusion series")
    in_mask = File(exists=True, mandatory=True)
    in_dseg = File(exists=True, desc="tissues on the grid of the series: 1 GM, 2 WM, 3 CSF")
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict()")
    direction = traits.List(mandatory=True, desc="diffusion directions after alignment")
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _OrientationOutputSpec(TraitedSpec):
    images = traits.List(File(exists=True), desc="number of fibres (x, y, z), and directions")
    directions = File(exists=True, desc="(x, y, z, 9): x, y and z of one fibre after the other; NaN where absent")
    notes = traits.List(traits.Str, desc="assumptions that were made")


class FindOrientations(SimpleInterface):
    """Number and directions of fibres by multi-tissue constrained spherical deconvolution."""

    input_spec = _OrientationInputSpec
    output_spec = _OrientationOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.core.acquisition import Acquisition
        from qmri_bidsapp.images.volumes import load_image, make_image, save_image
        from qmri_bidsapp.preprocess.fibre_directions import find_orientations

        torch.set_num_threads(self.inputs.n_threads)
        mask = load_image(self.inputs.in_mask, ndim=3)
        dseg = defined(self.inputs.in_dseg)
        found = find_orientations(
            np.asarray(load_image(self.inputs.in_file, ndim=4).dataobj),
            np.asarray(mask.dataobj) > 0,
            Acquisition.from_dict({**self.inputs.acquisition, "direction": self.inputs.direction}),  # type: ignore[arg-type]
            np.asarray(load_image(dseg, ndim=3).dataobj) if dseg else None,
        )
        folder = Path(runtime.cwd)
        vectors = found.directions.reshape(*mask.shape, -1)
        names = {"nfibres.nii": found.n_fibres, "directions.nii": vectors}
        saved = [str(save_image(make_image(values, mask), folder / name)) for name, values in names.items()]
        self._results.update(images=saved, directions=saved[1], notes=found.notes)
        return runtime
