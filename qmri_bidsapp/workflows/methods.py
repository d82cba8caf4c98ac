"""The methods text: what this version of the workflow does, in sentences for a paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmri_bidsapp import __version__
from qmri_bidsapp.preprocess.fibre_directions import ABSOLUTE_PEAK, MIN_SEPARATION, RELATIVE_PEAK
from qmri_bidsapp.preprocess.relaxometry import NEGLIGIBLE
from qmri_bidsapp.preprocess.rigid import MIN_SLICES
from qmri_bidsapp.registry import get_estimator, get_model
from qmri_bidsapp.workflows.motion_score import scores_motion

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.models.base import SignalModel
    from qmri_bidsapp.workflows.plan import SubjectPlan

#: Order in which the text describes the built-in models; others follow, by name.
_ORDER = ("activeax", "t1", "t2", "t2star", "ivim", "kurtosis", "vfa", "mtsat", "noddi", "smt", "tensor", "zcd")
_MOTION = (
    " The motion during the acquisition of each T1-weighted image was estimated by a fully convolutional network "
    "[@peng] trained on simulated motion, as the mean deviation between successive poses [@jenkinson]."
)
#: Sentences on the certificate.
_CERTIFICATE = (
    "For each protocol, estimator and noise level, voxels were simulated with parameters from a stated prior "
    "(plausible tissue, all alike, unless maps say otherwise) and estimated; maps of the expected bias and of the 5 to "
    "95 % range of the truth come from the simulated voxels with the most similar estimates, after linear regression "
    "within the neighbourhood [@beaumont]. Sinks of the parameter space [@gyori] are listed in the reports. Voxels "
    "that differ from the simulated ones in misfit, in the scatter over directions, in a single image or in the space "
    "of signals are flagged (p <= 0.05 by rank among simulated voxels of similar signal-to-noise ratio)."
)


@dataclass(frozen=True)
class Content:
    """What a run did, or could do where no data are known.

    Attributes
    ----------
    models : tuple of SignalModel
        In the order of the text.
    estimators : tuple of type
    has_t1w, has_series_without_t1w, has_relaxometry, has_diffusion : bool
        What there was to process.
    """

    models: tuple[SignalModel, ...]
    estimators: tuple[type[Estimator], ...]
    has_t1w: bool = True
    has_series_without_t1w: bool = True
    has_relaxometry: bool = True
    has_diffusion: bool = True


def content_of(config: Config, plans: Sequence[SubjectPlan] | None = None) -> Content:
    """Return what a run did, by its plans; without plans, what the options would do with data of every kind."""
    from qmri_bidsapp.fitting.choice import AUTO, named_models

    if plans is None:
        named = sorted({item.rpartition(":")[2] for item in config.estimators} - {AUTO})
        return Content(_models(named_models(config.models)), tuple(map(get_estimator, named)))
    series = [(item, found) for found in plans for item in found.series if item.fits]
    fits = {pair for item, _ in series for pair in item.fits}
    return Content(
        _models(name for name, _ in fits),
        tuple(get_estimator(name) for name in sorted({name for _, name in fits})),
        has_t1w=any(found.t1w for found in plans),
        has_series_without_t1w=any(not found.t1w for _, found in series),
        has_relaxometry=any(not item.group.row.is_diffusion for item, _ in series),
        has_diffusion=any(item.group.row.is_diffusion for item, _ in series),
    )


def _models(names: Iterable[str]) -> tuple[SignalModel, ...]:
    """Return models that the app can fit, in the order of the text."""
    order = {name: place for place, name in enumerate(_ORDER)}
    found = sorted(set(names), key=lambda name: (order.get(name, len(order)), name))
    return tuple(model for model in map(get_model, found) if model.bids_suffixes)


def bibliography(config: Config, plans: Sequence[SubjectPlan] | None = None) -> str:
    """Return the BibTeX entries of the models and estimators of a run; `plans` are as in `describe_methods`."""
    content = content_of(config, plans)
    entries = [*(model.bibliography for model in content.models), *(kind.bibliography for kind in content.estimators)]
    return "\n".join(entries)


def _anat(skip: tuple[str, ...], motion: str) -> str:
    """Return the paragraph on T1w images without the steps that were left out; `motion` follows."""
    begin = "T1-weighted images were corrected for the bias field with N4 [@n4]; the brain was"
    if "bias-field" in skip:
        begin = "T1-weighted images were not corrected for the bias field; the brain was"
    return (
        f"{begin} extracted with ROBEX [@robex] and segmented into grey matter, white matter and cerebrospinal fluid "
        f"with Atropos [@atropos].{motion}"
    )


def _series(content: Content, config: Config) -> str:
    """Return the paragraph on quantitative series without the steps that were left out."""
    skip = config.skip
    moved = (
        f"aligned rigidly by mutual information [@mattes] where they determine motion (at least {MIN_SLICES} slices) "
        f"and had moved by at least {NEGLIGIBLE:g} voxels"
    )
    text = []
    if "align" in skip:
        text.append("The images of a series were not aligned.")
    elif content.has_relaxometry:
        text.append(f"The images of each relaxometry series were {moved}.")
    if content.has_diffusion:
        text += _diffusion(config, "aligned in the same way where they had moved" if content.has_relaxometry else moved)
    text.append("No correction of susceptibility or eddy-current distortion was made.")
    if content.has_t1w:
        how = "by the geometry in the headers, without registration" if "register" in skip else "by rigid registration"
        text.append(f"Mask and tissues were transferred from the T1-weighted image to each series {how}.")
    if content.has_series_without_t1w:
        begin = "Without a T1-weighted image the" if content.has_t1w else "The"
        text.append(f"{begin} mask came from the series itself (Otsu threshold [@otsu], opening, largest component).")
    return " ".join(text)


def _diffusion(config: Config, aligned: str) -> list[str]:
    """Return the sentences on the preprocessing of diffusion series."""
    skip = config.skip
    done, left_out = [], ["denoised"] if "denoise" in skip else []
    if "denoise" not in skip:
        floor = " and corrected for the Rician noise floor [@koay]" if "noise-floor" not in skip else ""
        how = {"mppca": "MP-PCA [@mppca]", "patch2self": "Patch2Self [@patch2self]"}[config.denoise]
        done.append(f"denoised by {how}{floor}")
        left_out += [] if floor else ["corrected for the noise floor"]
    if "unring" in skip:
        left_out.append("cleared of Gibbs ringing")
    else:
        done.append("cleared of Gibbs ringing by local subvoxel shifts [@gibbs] where it was found")
    if "align" not in skip:
        done.append(f"{aligned}, with gradient directions rotated accordingly [@bmatrix]")
    found = [f"Diffusion series were {', then '.join(done)}."] if done else []
    return [*found, f"Diffusion series were not {' or '.join(left_out)}."] if left_out else found


def _fits(config: Config, content: Content) -> str:
    """Return the paragraph on models and estimators."""
    models = content.models
    text = [model.methods for model in models if model.methods]
    if others := [model.name for model in models if not model.methods]:
        text.append(f"Models of plug-ins were fitted as well: {', '.join(others)}.")
    if config.n_fibres == "auto" and content.has_diffusion:
        text.append(
            "Where the protocol allowed it, models with a fibre direction were fitted with as many bundles as each "
            "voxel has directions, up to three, found by multi-tissue constrained spherical deconvolution [@msmt]. "
            f"Peaks of the orientation distribution below {ABSOLUTE_PEAK:g} of that of a single fibre, below "
            f"{RELATIVE_PEAK:g} of the highest or within {MIN_SEPARATION:g} degrees of a higher one were discarded "
            "[@peaks]."
        )
    expected = ""
    if any(p.is_skewed for model in models for p in (*model.parameters, *model.derived)):
        expected = (
            ", and, of an orientation dispersion index, the expected error over the truths compatible with the estimate"
        )
    denoised = (
        ", or, for diffusion series, from MP-PCA [@mppca] or what varies within shells" if content.has_diffusion else ""
    )
    text += [
        "Unless maps say otherwise, non-linear models were fitted by least squares within bounds with the "
        "Levenberg-Marquardt method [@marquardt] in PyTorch [@pytorch], started from the best entry of a dictionary "
        f"that spans the parameter space. Standard deviations are Cramer-Rao bounds at the estimate{expected}; the "
        "noise level in them is from the residuals, moderated over the voxels of a series "
        f"[@moderation]{denoised}.",
        *(estimator.methods for estimator in content.estimators if estimator.methods),
        "Voxels whose estimate is on a bound other than a physical limit, did not converge or failed are marked in a "
        "status map.",
        *([] if config.no_certificate else [_CERTIFICATE]),
    ]
    return " ".join(text)


def describe_methods(config: Config, plans: Sequence[SubjectPlan] | None = None) -> str:
    """Return the methods text, with ``[@key]`` marks for references.

    Parameters
    ----------
    config : Config
    plans : sequence of SubjectPlan, optional
        What the run did; without it the text is on what the options would do with data of every kind.
    """
    content = content_of(config, plans)
    paragraphs = [
        f"Data in the Brain Imaging Data Structure [@bids] were processed with qmri_bidsapp {__version__}, a BIDS App "
        "[@bidsapps] built on Nipype [@nipype]."
    ]
    if content.has_t1w:
        paragraphs.append(_anat(config.skip, _MOTION if scores_motion(config) else ""))
    if content.models:
        paragraphs += [_series(content, config), _fits(config, content)]
    return "\n\n".join(paragraphs) + "\n"
