"""The nodes that certify an estimator, once for all subjects of a protocol, and judge a fit by its certificate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiObject, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.interfaces.preprocess import defined

if TYPE_CHECKING:
    import nibabel as nib

    from qmri_bidsapp.fitting.trust import Verdict


class _CertifyInputSpec(BaseInterfaceInputSpec):
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict(), as acquired")
    model = traits.Str(mandatory=True)
    estimator = traits.Str(mandatory=True)
    seed = traits.Int(0, usedefault=True)
    weights = traits.Directory(desc="weights of a trained estimator, or folder of such")
    weights_digest = traits.Str(desc="content hash of a folder that the user named")
    prior = traits.Str("uniform", usedefault=True, desc="name of the distribution of the truth")
    samples = File(exists=True, desc="parameters of each subject that it is made from, .npz, unless it is uniform")
    snr = traits.Float(mandatory=True, desc="signal-to-noise ratio of the series; 0 where it is unknown")
    noise_is_given = traits.Bool(mandatory=True, desc="whether the estimator is given the noise")
    floor_removed = traits.Bool(mandatory=True, desc="whether the noise floor of the magnitudes was removed")
    covariates_are_known = traits.Bool(False, usedefault=True, desc="whether there is a map of each covariate")
    cache = traits.Directory(mandatory=True, nohash=True, desc="folder of all certificates")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _CertifyOutputSpec(TraitedSpec):
    certificate = traits.Str(desc="folder of the certificate; empty where the noise of the series is unknown")


class Certify(SimpleInterface):
    """Certify an estimator for a protocol and a noise level, or find that it was done."""

    input_spec = _CertifyInputSpec
    output_spec = _CertifyOutputSpec
    # The cache may have been emptied; if not, this takes next to no time.
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.fitting.once import certify_once, load_prior, noise_level_of
        from qmri_bidsapp.fitting.series import make_estimator

        inputs = self.inputs
        self._results["certificate"] = ""
        if inputs.snr <= 0:
            return runtime
        torch.set_num_threads(inputs.n_threads)
        estimator = make_estimator(
            inputs.model, inputs.estimator, device=inputs.device, weights=defined(inputs.weights)
        )
        protocol, _ = estimator.model.adapt(Acquisition.from_dict(inputs.acquisition))
        folder = certify_once(
            estimator.fit(protocol, seed=inputs.seed),
            protocol,
            Path(inputs.cache),
            noise=noise_level_of(protocol, inputs.snr, floor_removed=inputs.floor_removed),
            prior=load_prior(estimator.model, inputs.prior, defined(inputs.samples)),
            noise_is_known=inputs.noise_is_given,
            covariates_are_known=inputs.covariates_are_known,
        )
        self._results["certificate"] = str(folder)
        return runtime


class _ReadTruthInputSpec(BaseInterfaceInputSpec):
    certificate = traits.Str(mandatory=True, desc="folder of `Certify`")
    model = traits.Str(mandatory=True)
    in_mask = File(exists=True, mandatory=True)
    estimates = traits.List(File(exists=True), mandatory=True, desc="maps of `Fit`, named by the parameter")
    stds = traits.List(File(exists=True), mandatory=True)
    evidence = File(exists=True, mandatory=True, desc="of `Fit`")
    covariates = InputMultiObject(File(exists=True), desc="as for `Fit`")
    debias = traits.Bool(False, usedefault=True, desc="whether to subtract the expected bias")
    with_intervals = traits.Bool(False, usedefault=True, desc="whether to give conformal intervals")


class _ReadTruthOutputSpec(TraitedSpec):
    maps = traits.List(File(exists=True), desc="expected biases, limits of the truth, and what was asked for")
    trust = traits.Str(desc="outcome of the reading in each voxel, see `Trust`; empty without a certificate")
    counts = traits.Dict(desc="voxels per value of `Trust`")
    wide_counts = traits.Dict(desc="quantity -> voxels in which its range is wide")
    flags = traits.List(File(exists=True), desc="reasons, see `Reason`, and p-values; empty without a certificate")
    flag_counts = traits.Dict(desc="voxels per value of `Reason`")
    noise_factor = traits.Float(desc="median ratio of the noise that flags are based on to the measured noise")
    certificate = traits.Str(desc="summary of the certificate, JSON; empty without one")


class ReadTruth(SimpleInterface):
    """Read the maps of a fit back to the truths that may have caused them; nothing without a certificate."""

    input_spec = _ReadTruthInputSpec
    output_spec = _ReadTruthOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        from qmri_bidsapp.images.volumes import load_image
        from qmri_bidsapp.uncertainty.certificate import SUMMARY

        inputs, folder = self.inputs, Path(runtime.cwd)
        self._results.update(maps=[], trust="", counts={}, wide_counts={}, certificate="")
        self._results.update(flags=[], flag_counts={}, noise_factor=1.0)
        if not inputs.certificate:
            return runtime
        mask_image = load_image(inputs.in_mask, ndim=3)
        estimate, verdict = _judge(inputs, np.asarray(mask_image.dataobj) > 0)
        self._results.update(_save_verdict(verdict, estimate, inputs, mask_image, folder))
        self._results.update(counts=verdict.reading.counts(), flag_counts=verdict.flags.counts())
        wide = verdict.reading.is_wide.sum(axis=0).tolist()
        self._results["wide_counts"] = dict(zip(verdict.quantities, wide, strict=True))
        self._results["noise_factor"] = verdict.noise_factor
        # A copy: the folder of certificates may be emptied.
        self._results["certificate"] = shutil.copy(Path(inputs.certificate) / SUMMARY, folder)
        return runtime


def _judge(inputs: Any, mask: Any) -> tuple[Any, Verdict]:
    """Load a fit and its certificate; return the estimates of the certificate's quantities, and the verdict."""
    from qmri_bidsapp.fitting.evidence import Evidence
    from qmri_bidsapp.fitting.trust import judge
    from qmri_bidsapp.registry import get_model
    from qmri_bidsapp.uncertainty.certificate import Certificate

    certificate = Certificate.load(inputs.certificate, get_model(inputs.model))
    names = [p.name for p in certificate.space.parameters]
    estimate = _columns(_by_name(inputs.estimates, names, ""), mask)
    std = _columns(_by_name(inputs.stds, names, "_std"), mask)
    covariates = defined(inputs.covariates)
    known = _columns(covariates, mask) if covariates else None
    return estimate, judge(certificate, estimate, std, Evidence.load(inputs.evidence), mask, covariates=known)


def _save_verdict(
    verdict: Verdict, estimate: Any, inputs: Any, mask_image: nib.Nifti1Image, folder: Path
) -> dict[str, Any]:
    """Write the maps of a verdict, with the geometry of the mask."""
    from qmri_bidsapp.images.volumes import save_columns
    from qmri_bidsapp.uncertainty.inverse import Trust
    from qmri_bidsapp.uncertainty.ood import Reason

    reading, flags = verdict.reading, verdict.flags
    parts = {"bias": reading.bias, "truthlow": reading.lower, "truthhigh": reading.upper}
    parts |= {"debiased": estimate - reading.bias} if inputs.debias else {}
    parts |= dict(zip(("low", "high"), verdict.interval, strict=True)) if inputs.with_intervals else {}
    maps = [
        name
        for ending, values in parts.items()
        for name in save_columns(values, [f"{name}_{ending}" for name in verdict.quantities], mask_image, folder)
    ]
    (trust,) = save_columns(reading.trust[:, None], ["trust"], mask_image, folder, Trust.OUTSIDE)
    (reasons,) = save_columns(flags.reason[:, None], ["flag"], mask_image, folder, Reason.OUTSIDE)
    return {
        "maps": maps,
        "trust": trust,
        "flags": [reasons, *save_columns(flags.p_value[:, None], ["p_value"], mask_image, folder)],
    }


def _by_name(files: list[str], names: list[str], ending: str) -> list[str]:
    """Return the files of these quantities, found by their names."""
    by_name = {Path(name).name.partition(".")[0]: name for name in files}
    return [by_name[f"{name}{ending}"] for name in names]


def _columns(files: list[str], mask: Any) -> Any:
    """Return (n_voxels, n_files) of the masked voxels of 3-D images."""
    import nibabel as nib

    return np.stack([np.asarray(nib.load(name).dataobj)[mask] for name in files], axis=1)
