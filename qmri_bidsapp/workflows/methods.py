"""The methods text: what the graphs of this version do, in sentences that can go into a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmri_bidsapp import __version__
from qmri_bidsapp.preprocess.fibre_directions import ABSOLUTE_PEAK, MIN_SEPARATION, RELATIVE_PEAK
from qmri_bidsapp.preprocess.relaxometry import NEGLIGIBLE
from qmri_bidsapp.preprocess.rigid import MIN_SLICES
from qmri_bidsapp.workflows.motion_score import scores_motion

if TYPE_CHECKING:
    from qmri_bidsapp.config import Config

_MODELS = {
    "activeax": "Axon diameter index and volume fractions of axons, of the space around them, of trapped and of free "
    "water were estimated by ActiveAx [@activeax], with the signal inside cylinders in the Gaussian phase "
    "approximation [@vangelderen].",
    "t1": "T1 was estimated from the magnitude of inversion-recovery images or, where phase or real and imaginary "
    "parts came with them, from images of restored polarity [@barral].",
    "t2": "T2 was estimated from multi-echo spin-echo images by a mono-exponential decay.",
    "t2star": "T2* was estimated from multi-echo gradient-echo images by a mono-exponential decay.",
    "ivim": "Where there were enough low b-values, perfusion fraction, pseudodiffusivity and diffusivity were "
    "estimated from averages per b-value up to 1000 s/mm2 [@ivim].",
    "kurtosis": "Where there were at least two shells, mean, axial and radial kurtosis [@jensen] [@tabesh] were "
    "estimated from volumes of b up to 3000 s/mm2 where these suffice, by iterated weighted linear least squares on "
    "the log signal [@salvador].",
    "vfa": "T1 was estimated from spoiled gradient echoes of several flip angles by the Ernst equation [@ernst] "
    "[@despot], with the effective flip angles where there was a map of the transmit field.",
    "mtsat": "Magnetization transfer saturation and T1 were estimated from spoiled gradient echoes with and without a "
    "magnetization transfer pulse [@mtsat] [@dathe], with the empirical correction for the transmit field [@weiskopf] "
    "where there was a map of it.",
    "noddi": "Where there were at least two shells, neurite density, orientation dispersion and free water fraction "
    "were estimated by NODDI with the Watson distribution [@noddi].",
    "smt": "Intra-neurite volume fraction and diffusivity were estimated from powder averages per shell, by the "
    "two-compartment spherical mean technique with the tortuosity approximation [@smt] [@gyori].",
    "tensor": "The diffusion tensor [@basser] was estimated by iterated weighted linear least squares on the log "
    "signal [@salvador], from volumes of b up to 1500 s/mm2 where these suffice.",
    "zcd": "Cylinder diameter, diffusivities and volume fractions were estimated by the model of a zeppelin, cylinders "
    "and a dot [@taxonomy], with the signal inside cylinders in the Gaussian phase approximation [@vangelderen].",
}
#: How estimators that learn were trained.
_LEARNED = (
    "trained on signals simulated for the protocol, with parameters from the distribution that the card of its weights "
    "describes; standard deviations are those of the posterior under that distribution."
)
#: What is not said of all fits.
_ESTIMATORS = {
    "boosting": f"With the estimator boosting, estimates are those of gradient-boosted trees [@friedman] {_LEARNED}",
    "forest": f"With the estimator forest, estimates are those of a random forest [@gyori] {_LEARNED}",
    "grid": "With the estimator grid, estimates are posterior means for a uniform prior within bounds and Gaussian "
    "noise, by summation over a lattice [@lattice], and standard deviations are those of the posterior.",
    "interior-point": "With the estimator interior-point, the bounds were approached from inside by a logarithmic "
    "barrier [@nocedal], from the same starting points.",
    "map": "Where the maps say so, T1 is the maximum of the posterior with a smooth inversion factor [@sabidussi], the "
    "strength of smoothing estimated from the data; standard deviations are then those of the Laplace approximation.",
    "mix": "With the estimator mix, starting points came from a global search in place of the dictionary: differential "
    "evolution [@evolution] over the non-linear parameters, with the fractions of compartments from non-negative least "
    "squares [@mix].",
    "mlp": f"With the estimator mlp, estimates are those of a multilayer perceptron [@gyori] {_LEARNED}",
    "polynomial": "With the estimator polynomial, estimates are those of Bayesian polynomial regression [@reisert] "
    f"{_LEARNED}",
    "reduced": "With the estimator reduced, least squares were penalised by a weak prior around the middle of the "
    "bounds, and the bias of second order was taken off [@box] [@cook].",
    "resnet": "With the estimator resnet, estimates are those of a residual network trained on simulated slices of the "
    "protocol, made from label maps of heads [@sabidussi]; standard deviations, where the weights tell them, were "
    "learned from the errors on such slices.",
    "rician": "Where the maps say so, parameters are those of maximum likelihood with the Rician noise of magnitudes "
    "[@rician], reached from the least-squares minimum by Fisher scoring, and each voxel's noise with them.",
    "rim": "With the estimator rim, estimates are those of a recurrent inference machine trained on slices simulated "
    "from label maps of heads, with protocols drawn at random [@sabidussi]; standard deviations, where the weights "
    "tell them, were learned from the errors on such slices.",
    "varpro": "With the estimator varpro, the linear parameters were eliminated by variable projection [@golub] "
    "[@kaufman].",
    "wide-deep": "With the estimator wide-deep, estimates are those of a linear model and a deep network combined "
    f"[@cheng] {_LEARNED}",
}
_MOTION = (
    " The motion during the acquisition of each T1-weighted image was estimated by a fully convolutional network "
    "[@peng] trained on simulated motion, as the mean deviation between successive poses [@jenkinson]."
)
#: What is said of the inverse reading.
_CERTIFICATE = (
    "For each protocol, estimator and noise level, voxels were simulated with parameters from a stated prior "
    "(plausible tissue, all alike, unless maps say otherwise) and estimated; maps of the expected bias and of the 5 to "
    "95 % range of the truth come from the simulated voxels with the most similar estimates, after linear regression "
    "within the neighbourhood [@beaumont]. Sinks of the parameter space [@gyori] are listed in the reports. Voxels "
    "that are unlike the simulated ones in misfit, in the scatter over directions, by a single image or in the space "
    "of signals are flagged (p <= 0.05 by rank among simulated voxels of a like signal-to-noise ratio)."
)


def describe_methods(config: Config) -> str:
    """Return the methods text, with ``[@key]`` marks for references."""
    from qmri_bidsapp.fitting.choice import named_models

    named = named_models(config.models)
    fits = " ".join(text for name, text in _MODELS.items() if name in named)
    others = [name for name in config.models if name not in _MODELS and name != "auto"]
    if others:
        fits += f" Models of plug-ins were fitted as well: {', '.join(others)}."
    if config.n_fibres == "auto":
        fits += (
            " Where the protocol allowed it, models with a fibre direction were fitted with as many bundles as each "
            "voxel has directions, up to three, found by multi-tissue constrained spherical deconvolution [@msmt]. "
            f"Peaks of the orientation distribution below {ABSOLUTE_PEAK:g} of that of a single fibre, below "
            f"{RELATIVE_PEAK:g} of the highest or within {MIN_SEPARATION:g} degrees of a higher one did not count "
            "[@peaks]."
        )
    estimators = {item.rpartition(":")[2] for item in config.estimators}
    special = "".join(f" {text}" for name, text in _ESTIMATORS.items() if name in estimators)
    trust = "" if config.no_certificate else f" {_CERTIFICATE}"
    motion = _MOTION if scores_motion(config) else ""
    return f"""Data in the Brain Imaging Data Structure [@bids] were processed with qmri_bidsapp {__version__}, a BIDS
App [@bidsapps] built on Nipype [@nipype].

T1-weighted images were corrected for the bias field with N4 [@n4]; the brain was extracted with ROBEX [@robex] and
segmented into grey matter, white matter and cerebrospinal fluid with Atropos [@atropos].{motion}

The images of each relaxometry series were aligned rigidly by mutual information [@mattes] where there were at least
{MIN_SLICES} slices; images that had moved by less than {NEGLIGIBLE:g} voxels were not resampled. Diffusion series
were denoised by MP-PCA [@mppca], corrected for the Rician noise floor [@rician] and cleared of Gibbs ringing [@gibbs]
with DIPY [@dipy], then aligned in the same way, and the gradient directions were rotated accordingly [@bmatrix]. No
correction of susceptibility or eddy-current distortion was made. Mask and tissues were brought from the T1-weighted
image to each series by rigid registration; without a T1-weighted image the mask came from the series itself
(threshold of Otsu [@otsu], opening, largest part).

{fits} Unless maps say otherwise, non-linear models were fitted by least squares within bounds with the
Levenberg-Marquardt method [@marquardt] in PyTorch [@pytorch], started from the best entry of a dictionary that spans
the parameter space. Standard deviations are Cramer-Rao bounds at the estimate, and, of an orientation dispersion index,
the expected error over the truths that may have made the estimate; the noise level in them is from the residuals,
moderated over the voxels of a series [@moderation], or, for denoised diffusion series, from MP-PCA.{special} Voxels
whose estimate is on a bound, did not converge or failed are marked in a status map.{trust}
"""
