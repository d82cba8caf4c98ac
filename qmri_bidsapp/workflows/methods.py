"""The methods text: what this version of the workflow does, in sentences for a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmri_bidsapp import __version__
from qmri_bidsapp.preprocess.fibre_directions import ABSOLUTE_PEAK, MIN_SEPARATION, RELATIVE_PEAK
from qmri_bidsapp.preprocess.relaxometry import NEGLIGIBLE
from qmri_bidsapp.preprocess.rigid import MIN_SLICES
from qmri_bidsapp.workflows.motion_score import scores_motion

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.models.base import SignalModel

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


def _fitted(config: Config) -> tuple[list[SignalModel], list[type[Estimator]]]:
    """Return the models that the app can fit, in the order of the text, and the estimators requested by name."""
    from qmri_bidsapp.fitting.choice import AUTO, named_models
    from qmri_bidsapp.registry import get_estimator, get_model

    order = {name: place for place, name in enumerate(_ORDER)}
    names = sorted(set(named_models(config.models)), key=lambda name: (order.get(name, len(order)), name))
    estimators = sorted({item.rpartition(":")[2] for item in config.estimators} - {AUTO})
    models = [model for model in map(get_model, names) if model.bids_suffixes]
    return models, [get_estimator(name) for name in estimators]


def bibliography(config: Config) -> str:
    """Return the BibTeX entries of the models and estimators of a run."""
    models, estimators = _fitted(config)
    return "\n".join([*(model.bibliography for model in models), *(item.bibliography for item in estimators)])


def _preprocessing(skip: tuple[str, ...], motion: str) -> str:
    """Return the paragraphs on preprocessing without the steps that were left out; `motion` follows on the T1w."""
    begin = "T1-weighted images were corrected for the bias field with N4 [@n4]; the brain was"
    if "bias-field" in skip:
        begin = "T1-weighted images were not corrected for the bias field; the brain was"
    anat = (
        f"{begin} extracted with ROBEX [@robex] and segmented into grey matter, white matter and cerebrospinal "
        f"fluid with Atropos [@atropos].{motion}"
    )
    series = ["The images of a series were not aligned."]
    if "align" not in skip:
        series = [
            "The images of each relaxometry series were aligned rigidly by mutual information [@mattes] where there "
            f"were at least {MIN_SLICES} slices; images that had moved by less than {NEGLIGIBLE:g} voxels were not "
            "resampled."
        ]
    series += _diffusion(skip)
    series.append("No correction of susceptibility or eddy-current distortion was made.")
    how = "by the geometry in the headers, without registration" if "register" in skip else "by rigid registration"
    series.append(
        f"Mask and tissues were transferred from the T1-weighted image to each series {how}; without a T1-weighted "
        "image the mask came from the series itself (Otsu threshold [@otsu], opening, largest component)."
    )
    return f"{anat}\n\n{' '.join(series)}"


def _diffusion(skip: tuple[str, ...]) -> list[str]:
    """Return the sentences on the preprocessing of diffusion series."""
    done, left_out = [], ["denoised"] if "denoise" in skip else []
    if "denoise" not in skip:
        floor = " and corrected for the Rician noise floor [@koay]" if "noise-floor" not in skip else ""
        done.append(f"denoised by MP-PCA [@mppca]{floor}")
        left_out += [] if floor else ["corrected for the noise floor"]
    if "unring" in skip:
        left_out.append("cleared of Gibbs ringing")
    else:
        done.append("cleared of Gibbs ringing [@gibbs] with DIPY [@dipy] where it was found")
    if "align" not in skip:
        done.append(
            "aligned in the same way where they had moved, with gradient directions rotated accordingly [@bmatrix]"
        )
    found = [f"Diffusion series were {', then '.join(done)}."] if done else []
    return [*found, f"Diffusion series were not {' or '.join(left_out)}."] if left_out else found


def describe_methods(config: Config) -> str:
    """Return the methods text, with ``[@key]`` marks for references."""
    models, estimators = _fitted(config)
    fits = " ".join(model.methods for model in models if model.methods)
    if others := [model.name for model in models if not model.methods]:
        fits += f" Models of plug-ins were fitted as well: {', '.join(others)}."
    if config.n_fibres == "auto":
        fits += (
            " Where the protocol allowed it, models with a fibre direction were fitted with as many bundles as each "
            "voxel has directions, up to three, found by multi-tissue constrained spherical deconvolution [@msmt]. "
            f"Peaks of the orientation distribution below {ABSOLUTE_PEAK:g} of that of a single fibre, below "
            f"{RELATIVE_PEAK:g} of the highest or within {MIN_SEPARATION:g} degrees of a higher one were discarded "
            "[@peaks]."
        )
    special = "".join(f" {estimator.methods}" for estimator in estimators if estimator.methods)
    trust = "" if config.no_certificate else f" {_CERTIFICATE}"
    motion = _MOTION if scores_motion(config) else ""
    return f"""Data in the Brain Imaging Data Structure [@bids] were processed with qmri_bidsapp {__version__}, a BIDS
App [@bidsapps] built on Nipype [@nipype].

{_preprocessing(config.skip, motion)}

{fits} Unless maps say otherwise, non-linear models were fitted by least squares within bounds with the
Levenberg-Marquardt method [@marquardt] in PyTorch [@pytorch], started from the best entry of a dictionary that spans
the parameter space. Standard deviations are Cramer-Rao bounds at the estimate, and, of an orientation dispersion index,
the expected error over the truths compatible with the estimate; the noise level in them is from the residuals,
moderated over the voxels of a series [@moderation], or, for diffusion series, from MP-PCA [@mppca] or what varies
within shells.{special} Voxels whose estimate is on a bound, did not converge or failed are marked in a status
map.{trust}
"""
