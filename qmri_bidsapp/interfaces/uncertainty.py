"""The nodes that certify an estimator, once for all subjects of a protocol, and read its maps back to the truth."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiObject, SimpleInterface, TraitedSpec, traits

from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.core.prior import Prior
from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.errors import InputError
from qmri_bidsapp.estimators.base import Estimator
from qmri_bidsapp.images.noise import smooth
from qmri_bidsapp.images.volumes import fill, load_image, make_image, save_image
from qmri_bidsapp.interfaces.fitting import make_estimator
from qmri_bidsapp.interfaces.preprocess import defined
from qmri_bidsapp.interfaces.training import load_prior, locked
from qmri_bidsapp.registry import get_model
from qmri_bidsapp.uncertainty.certificate import N_VOXELS, SUMMARY, Certificate, certify, identity_of
from qmri_bidsapp.uncertainty.inverse import Reading, Trust
from qmri_bidsapp.uncertainty.ood import Flags, Reason
from qmri_bidsapp.uncertainty.ood_measures import Measures

#: Voxels that are read at a time.
CHUNK_SIZE = 131_072


def certify_once(
    estimator: Estimator,
    acquisition: Acquisition,
    cache: Path,
    *,
    noise: Noise,
    prior: Prior | None = None,
    n: int = N_VOXELS,
    noise_is_known: bool = True,
    covariates_are_known: bool = False,
) -> Path:
    """Return the folder of a certificate, made by whoever comes first.

    Parameters
    ----------
    estimator : Estimator
        Fitted to the protocol.
    acquisition, noise, prior, n, noise_is_known, covariates_are_known
        See `certify`.
    cache : Path
        Folder of all certificates; each has a folder named by the hash of everything that it depends on.
    """
    from qmri_bidsapp.artifacts.weights import key_of

    options: dict[str, Any] = {"noise": noise, "n": n, "seed": 0}
    options |= {"noise_is_known": noise_is_known, "covariates_are_known": covariates_are_known}
    stated = prior or estimator.model.default_prior()
    folder = cache / key_of(identity_of(estimator, acquisition, prior=stated, **options))
    with locked(folder):
        try:
            Certificate.load(folder, estimator.model)
        except InputError:
            # Not there, or damaged.
            certify(estimator, acquisition, prior=prior, **options).save(folder)
    return folder


class _CertifyInputSpec(BaseInterfaceInputSpec):
    acquisition = traits.Dict(mandatory=True, desc="Acquisition.to_dict(), as it was acquired")
    model = traits.Str(mandatory=True)
    estimator = traits.Str(mandatory=True)
    seed = traits.Int(0, usedefault=True)
    weights = traits.Directory(desc="weights of a trained estimator, or folder of such")
    weights_digest = traits.Str(desc="content hash of a folder that the user named")
    prior = traits.Str("uniform", usedefault=True, desc="name of the distribution of the truth")
    samples = File(exists=True, desc="parameters of each subject that it is made from, .npz, unless it is uniform")
    snr = traits.Float(mandatory=True, desc="signal-to-noise ratio of the series; 0 where it is not known")
    noise_is_given = traits.Bool(mandatory=True, desc="whether the estimator is told the noise")
    floor_is_removed = traits.Bool(mandatory=True, desc="whether the bias of magnitudes was taken away")
    covariates_are_known = traits.Bool(False, usedefault=True, desc="whether there is a map of each covariate")
    cache = traits.Directory(mandatory=True, nohash=True, desc="folder of all certificates")
    device = traits.Str("cpu", usedefault=True, nohash=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)
    n_threads = traits.Int(1, usedefault=True, nohash=True)


class _CertifyOutputSpec(TraitedSpec):
    certificate = traits.Str(desc="folder of the certificate; empty where the noise of the series is not known")


class Certify(SimpleInterface):
    """Certify an estimator for a protocol and a noise level, or find that it was done."""

    input_spec = _CertifyInputSpec
    output_spec = _CertifyOutputSpec
    # The cache may have been emptied; where it was not, there is next to nothing to do.
    _always_run = True

    def _run_interface(self, runtime: Any) -> Any:
        import torch

        from qmri_bidsapp.fitting.noise_level import coarse

        inputs = self.inputs
        self._results["certificate"] = ""
        if inputs.snr <= 0:
            return runtime
        torch.set_num_threads(inputs.n_threads)
        model = get_model(inputs.model)
        protocol, _ = model.adapt(Acquisition.from_dict(inputs.acquisition))
        estimator = make_estimator(inputs.model, inputs.estimator, inputs.device, defined(inputs.weights) or None)
        level = coarse(inputs.snr)
        folder = certify_once(
            estimator.fit(protocol, seed=inputs.seed),
            protocol,
            Path(inputs.cache),
            noise=Noise("gaussian" if protocol.has_sign or inputs.floor_is_removed else "rician", (level, level)),
            prior=load_prior(model, inputs.prior, defined(inputs.samples)),
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
    snr_map = File(exists=True, mandatory=True, desc="of `Fit`; likewise the next two")
    measures = File(exists=True, mandatory=True)
    floor_is_removed = traits.Bool(mandatory=True)
    covariates = InputMultiObject(File(exists=True), desc="as for `Fit`")
    debias = traits.Bool(False, usedefault=True, desc="whether to subtract the expected bias")
    with_intervals = traits.Bool(False, usedefault=True, desc="whether to give conformal intervals")


class _ReadTruthOutputSpec(TraitedSpec):
    maps = traits.List(File(exists=True), desc="expected biases, limits of the truth, and what was asked for")
    trust = traits.Str(desc="what the reading says of each voxel, see `Trust`; empty without a certificate")
    counts = traits.Dict(desc="voxels per value of `Trust`")
    wide_counts = traits.Dict(desc="voxels in which it is this quantity's range that is wide")
    flags = traits.List(File(exists=True), desc="reasons, see `Reason`, and p-values; empty without a certificate")
    flag_counts = traits.Dict(desc="voxels per value of `Reason`")
    noise_factor = traits.Float(desc="median of the noise that flags take over that which was measured")
    certificate = traits.Str(desc="summary of the certificate, JSON; empty without one")


class ReadTruth(SimpleInterface):
    """Read the maps of a fit back to the truths that may have made them; nothing without a certificate."""

    input_spec = _ReadTruthInputSpec
    output_spec = _ReadTruthOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        inputs, folder = self.inputs, Path(runtime.cwd)
        self._results.update(maps=[], trust="", counts={}, wide_counts={}, certificate="")
        self._results.update(flags=[], flag_counts={}, noise_factor=1.0)
        if not inputs.certificate:
            return runtime
        certificate = Certificate.load(inputs.certificate, get_model(inputs.model))
        mask_image = load_image(inputs.in_mask, ndim=3)
        mask = np.asarray(mask_image.dataobj) > 0
        quantities = [p.name for p in certificate.space.parameters]
        snr = _columns_of([inputs.snr_map], mask)[:, 0]
        estimate = _columns(inputs.estimates, quantities, "", mask)
        std = _columns(inputs.stds, quantities, "_std", mask)
        reading = _read(
            certificate,
            estimate,
            std,
            snr,
            _columns_of(defined(inputs.covariates), mask) if certificate.identity["covariates_are_known"] else None,
        )

        def save(values: npt.NDArray[Any], background: float, name: str) -> str:
            return str(save_image(make_image(fill(values, mask, background), mask_image), folder / f"{name}.nii"))

        flags, factor = _flag(certificate, inputs.measures, snr, mask, is_denoised=inputs.floor_is_removed)
        parts = {"bias": reading.bias, "truthlow": reading.lower, "truthhigh": reading.upper}
        parts |= {"debiased": estimate - reading.bias} if inputs.debias else {}
        if inputs.with_intervals:
            half = std * [certificate.conformal.get(name, np.nan) for name in quantities]
            # Beyond what was simulated the intervals promise nothing.
            half[(flags.reason != Reason.TYPICAL) | (reading.trust == Trust.UNLIKE)] = np.nan
            parts |= {"low": estimate - half, "high": estimate + half}
        self._results["maps"] = [
            save(values[:, k], np.nan, f"{name}_{ending}")
            for ending, values in parts.items()
            for k, name in enumerate(quantities)
        ]
        self._results["trust"] = save(reading.trust, Trust.OUTSIDE, "trust")
        self._results["counts"] = reading.counts()
        self._results["wide_counts"] = dict(zip(quantities, reading.is_wide.sum(axis=0).tolist(), strict=True))
        reasons = save(flags.reason, Reason.OUTSIDE, "flag")
        self._results["flags"] = [reasons, save(flags.p_value, np.nan, "p_value")]
        self._results.update(flag_counts=flags.counts(), noise_factor=factor)
        # Of its own: the folder of certificates may be emptied.
        self._results["certificate"] = shutil.copy(Path(inputs.certificate) / SUMMARY, folder)
        return runtime


def _flag(
    certificate: Certificate, file: str, snr: npt.NDArray[Any], mask: npt.NDArray[np.bool_], *, is_denoised: bool
) -> tuple[Flags, float]:
    """Compare voxels with the simulated ones; return also the median of the noise that was taken over the stated."""
    with np.load(file, allow_pickle=False) as arrays:
        measures = Measures.from_arrays(dict(arrays))
    with np.errstate(invalid="ignore", divide="ignore"):
        stated = measures.size / snr

    def over_neighbours(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return smooth(fill(values, mask, np.nan))[mask]

    known = certificate.out_of_distribution
    noise = stated if is_denoised else known.noise_in_use(measures, stated, over_neighbours)
    parts = [slice(i, i + CHUNK_SIZE) for i in range(0, len(noise), CHUNK_SIZE)]
    flags = [known.flag(measures.part(part), noise[part], less_is_fine=is_denoised) for part in parts]
    ratio = (noise / stated)[np.isfinite(noise) & (stated > 0)]
    return Flags.join(flags), float(np.median(ratio)) if ratio.size else 1.0


def _columns(files: list[str], quantities: list[str], ending: str, mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return (n_voxels, n_quantities) of maps that are found by their names."""
    by_name = {Path(name).name.partition(".")[0]: name for name in files}
    return _columns_of([by_name[f"{quantity}{ending}"] for quantity in quantities], mask)


def _columns_of(files: list[str], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    import nibabel as nib

    return np.stack([np.asarray(nib.load(name).dataobj)[mask] for name in files], axis=1)


def _read(
    certificate: Certificate,
    estimate: npt.NDArray[Any],
    std: npt.NDArray[Any],
    snr: npt.NDArray[Any],
    covariates: npt.NDArray[Any] | None,
) -> Reading:
    """Read voxels part by part, so that memory stays bounded."""
    reader = certificate.reader
    parts = [
        reader.read(
            estimate[part], std[part], snr=snr[part], covariates=None if covariates is None else covariates[part]
        )
        for part in (slice(i, i + CHUNK_SIZE) for i in range(0, len(estimate), CHUNK_SIZE))
    ]
    names = ("bias", "lower", "upper", "trust", "is_wide")
    return Reading(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
