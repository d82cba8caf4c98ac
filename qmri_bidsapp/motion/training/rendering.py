"""Images of heads rendered from label maps, with random intensities of tissue classes (Billot et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qmri_bidsapp.motion.displacement import Floats

#: Mean T1w intensity of the classes within the brain, from the priors of SynthSeg (Billot et al. 2023); left and right
#: are one class. Labels of FreeSurfer -> intensity.
T1_INTENSITY = {
    (2, 41): 160.0,  # white matter
    (3, 42): 96.0,  # cortex
    (4, 5, 14, 15, 24, 43, 44, 72): 44.0,  # fluid
    (7, 46): 136.0,  # cerebellum, white matter
    (8, 47): 88.0,  # cerebellum, cortex
    (10, 49): 130.0,  # thalamus
    (11, 50): 112.0,  # caudate nucleus
    (12, 51): 124.0,  # putamen
    (13, 52): 152.0,  # pallidum
    (16,): 142.0,  # brain stem
    (17, 18, 53, 54): 96.0,  # hippocampus, amygdala
    (25, 57): 60.0,  # lesion
    (26, 58): 116.0,  # accumbens
    (28, 60): 142.0,  # ventral diencephalon
    (30, 62): 126.0,  # vessel
    (85,): 116.0,  # optic chiasm
    (136, 137, 163, 164): 90.0,  # other
}
#: Labels outside the brain start here; their tissues are unknown.
OUTSIDE = 500


@dataclass(frozen=True, eq=False)
class Contrast:
    """Intensities of a rendered head.

    Attributes
    ----------
    mean, std : ndarray
        (class,) intensity.
    smoothness : float
        Share of the variance within a class that varies slowly.
    seed : int
        Of the texture.
    """

    mean: Floats
    std: Floats
    smoothness: float
    seed: int


def classes_of(labels: Floats) -> tuple[Floats, Floats]:
    """Return the class of each label (left and right share one), and the mean T1w intensity of each class.

    Parameters
    ----------
    labels : ndarray
        (label,) labels in the map; 0 is background.

    Returns
    -------
    ndarray
        (label,) class; 0 for background.
    ndarray
        (class,) intensity; NaN where the tissue is unknown.
    """
    groups = list(T1_INTENSITY)
    outside = sorted(int(label) for label in labels if label >= OUTSIDE)
    found = []
    for label in labels.astype(int).tolist():
        inside = next((i for i, group in enumerate(groups) if label in group), None)
        if inside is not None:
            found.append(1 + inside)
        else:
            found.append(1 + len(groups) + outside.index(label) if label in outside else 0)
    intensities = [0.0, *T1_INTENSITY.values(), *(float("nan") for _ in outside)]
    return np.array(found), np.array(intensities)


def draw_contrast(rng: np.random.Generator, t1_intensity: Floats) -> Contrast:
    """Draw intensities: T1w-like ones in two of three heads, arbitrary ones in the others.

    Parameters
    ----------
    rng : Generator
    t1_intensity : ndarray
        (class,) from `classes_of`.
    """
    n_classes = len(t1_intensity)
    any_mean = rng.uniform(10, 200, n_classes)
    if rng.uniform() < 2 / 3:
        mean = np.where(np.isnan(t1_intensity), any_mean, t1_intensity * rng.uniform(0.9, 1.1, n_classes))
        std = rng.uniform(3, 15, n_classes)
    else:
        mean, std = any_mean, rng.uniform(3, 20, n_classes)
    mean[0], std[0] = rng.uniform(0, 4), rng.uniform(0, 2)
    return Contrast(mean, std, rng.uniform(0.3, 1), int(rng.integers(2**31)))


def render(classes: Tensor, contrast: Contrast) -> Tensor:
    """Return the image of a label map.

    Parameters
    ----------
    classes : Tensor
        (x, y, z) integer.
    contrast : Contrast

    Returns
    -------
    Tensor
        (x, y, z) float32, not negative.
    """
    generator = torch.Generator(classes.device).manual_seed(contrast.seed)
    coarse_shape = [(n + 2) // 3 for n in classes.shape]
    options = {"generator": generator, "device": classes.device}
    fine = torch.randn(classes.shape, **options)  # type: ignore[call-overload]
    coarse = torch.randn((1, 1, *coarse_shape), **options)  # type: ignore[call-overload]
    coarse = torch.nn.functional.interpolate(coarse, size=classes.shape, mode="trilinear")[0, 0]
    texture = (1 - contrast.smoothness) ** 0.5 * fine + (1.5 * contrast.smoothness) ** 0.5 * coarse
    index = classes.long()
    tables = [torch.as_tensor(t, dtype=torch.float32, device=classes.device) for t in (contrast.mean, contrast.std)]
    image: Tensor = tables[0][index] + tables[1][index] * texture
    return image.clamp_min(0)
