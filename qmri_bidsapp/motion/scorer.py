"""The motion score of one T1w volume: a distribution over the score, with warnings where it may be wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qmri_bidsapp.artifacts.weights import load_weights, save_weights, sha256_of
from qmri_bidsapp.errors import WeightsError
from qmri_bidsapp.motion.air import signal_in_air
from qmri_bidsapp.motion.checks import check_head, check_shape
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.head_axes import is_misoriented
from qmri_bidsapp.motion.network import SFCN, Architecture, bin_centres, summarise
from qmri_bidsapp.motion.network_input import GRID, find_head, prepare, reorient
from qmri_bidsapp.motion.published import PUBLISHED_GRID, log_probability, make_input

if TYPE_CHECKING:
    from qmri_bidsapp.motion.qc_head import QualityHead

#: Weights that come with the program.
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "motion"
#: Identity on the card of all weights of this kind.
IDENTITY = {"model": "motion score of a T1w", "estimator": "sfcn"}
COVERAGE = 0.9
#: Name of the coarse heads among the tensors.
HEADS = "heads"
#: A smaller p-value gives a warning: the image is unlike the training images.
UNFAMILIAR = 0.01
#: A longer interval gives a warning: the network is uncertain, mm.
MAX_INTERVAL = 2.0
ORIENTATION = (
    "The orientation of the head does not match the header, or this is not a head: check the axes of the image."
)
OTHER_VERSION = "The weights in {} are not for this version of the network ({})."


@dataclass(frozen=True)
class MotionScore:
    """Motion of the head during a T1w acquisition, as estimated from the image.

    Attributes
    ----------
    mean, low, high : float
        Mean and limits of the 90 % interval, mm.
    probability : tuple of float
        (bin,) distribution over `bins`.
    embedding : tuple of float
        (feature,) of the network; empty if the network has no embedding.
    p_value : float or None
        Share of the training images that are at least as far from the mean of the training data; None if the network
        has no embedding.
    warnings : tuple of str
        Reasons why the score may be wrong.
    air : tuple of float
        (slice,) mean signal in the air of each axial slice, inferior to superior, percent of the head's median; NaN
        where unknown. Empty unless computed, see `score_t1w`.
    grades : mapping of str to float
        Grade -> probability, of a lab's own quality grades; empty without a quality-control head.
    """

    mean: float
    low: float
    high: float
    probability: tuple[float, ...] = field(repr=False)
    embedding: tuple[float, ...] = field(default=(), repr=False)
    p_value: float | None = None
    warnings: tuple[str, ...] = ()
    air: tuple[float, ...] = field(default=(), repr=False)
    grades: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without grades if there are none."""
        found = asdict(self)
        if not self.grades:
            del found["grades"]
        return found

    @staticmethod
    def bins() -> list[float]:
        """Return the centre of each bin, mm."""
        return [round(value, 6) for value in bin_centres(torch.zeros(1)).tolist()]


@dataclass(frozen=True)
class MotionScorer:
    """A network, and the function that makes its input from a T1w volume.

    Attributes
    ----------
    network : callable
        (n, x, y, z) -> (n, bin) log-probability, and (n, feature) embedding or None.
    make_input : callable
        Volume (i, j, k) and affine -> (x, y, z).
    familiarity : Familiarity or None
        Distribution of the training embeddings.
    heads : Tensor or None
        Coarse mean heads in the right orientation; see `head_axes.mean_heads`.
    sha256 : str
        Of the file of weights.
    bias_corrected : bool
        Whether the network expects images after N4.
    notes : mapping
        What the card says about the training.
    """

    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    make_input: Callable[[Tensor, Floats], Tensor]
    familiarity: Familiarity | None = None
    heads: Tensor | None = None
    sha256: str = ""
    bias_corrected: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, sha256: str | None = None) -> MotionScorer:
        """Load a folder of weights (see `load`) or a TorchScript file (see `published`)."""
        return cls.load(path, sha256) if Path(path).is_dir() else cls.published(path, sha256)

    @classmethod
    def load(cls, folder: Path, sha256: str | None = None) -> MotionScorer:
        """Load weights that `save_scorer` wrote.

        Parameters
        ----------
        folder : Path
        sha256 : str, optional
            Expected SHA-256 of the file of tensors.

        Raises
        ------
        WeightsError
            If the weights are damaged, made for something else, or have another SHA-256.
        """
        network, tensors, notes = load_network(folder)
        found = sha256_of(folder)
        _compare(found, sha256, folder)
        try:
            familiarity, heads = Familiarity.from_tensors(tensors), tensors[HEADS]
            if (notes["spacing"], tuple(notes["shape"])) != (GRID.spacing, GRID.shape):
                raise ValueError(f"input of {notes['shape']} voxels of {notes['spacing']} mm")
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(OTHER_VERSION.format(folder, error)) from error
        network.eval()

        def predict(image: Tensor) -> tuple[Tensor, Tensor]:
            features = network.embed(image)
            return network.from_features(features), features

        return cls(
            predict,
            lambda volume, affine: prepare(volume, affine, GRID),
            familiarity,
            heads,
            found,
            bool(notes.get("bias_corrected", False)),
            notes,
        )

    @classmethod
    def published(cls, file: Path, sha256: str | None = None) -> MotionScorer:
        """Load the TorchScript model of Bricout and colleagues, or one with the same input and output.

        The input is 160 x 192 x 160 voxels of 1 mm after N4, its range scaled to [0, 1]. The output is 50 bins from
        -0.5 to 4.5 mm. The model was trained on heads aligned to MNI; here the input is centred on the head, not
        aligned.

        Raises
        ------
        WeightsError
            If the file is not a readable TorchScript file, has another input or output, or another SHA-256.
        """
        try:
            found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except OSError as error:
            raise WeightsError(f"{file} cannot be read ({error.strerror}).") from error
        _compare(found, sha256, file)
        try:
            model = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{file} is not a TorchScript file ({str(error).splitlines()[0]}).") from error
        model.eval()
        trial = torch.zeros(1, *PUBLISHED_GRID.shape)
        trial[0, 0, 0, 0] = 1.0
        log_probability(model, trial)
        return cls(lambda image: (log_probability(model, image), None), make_input, sha256=found, bias_corrected=True)

    @torch.no_grad()
    def score(self, volume: Tensor, affine: Floats) -> MotionScore:
        """Return the score of a T1w volume, without signal in air and grades.

        Parameters
        ----------
        volume : Tensor
            (i, j, k) in any unit; after N4 if `bias_corrected`.
        affine : ndarray
            (4, 4) voxel to mm.

        Raises
        ------
        InputError
            If the volume cannot be a T1w of a head: 4D, empty, without a head, with thick slices, or a phantom.
        """
        volume, warnings = check_shape(volume, affine)
        turned, voxel_size = reorient(volume, affine)
        centre = find_head(turned, voxel_size.tolist(), GRID)
        warnings += check_head(turned, voxel_size, centre)
        image = self.make_input(volume, affine)[None]
        log_probability, features = self.network(image)
        mean, low, high = (float(value[0]) for value in summarise(log_probability, COVERAGE))
        embedding: tuple[float, ...] = ()
        p_value = None
        if features is not None:
            embedding = tuple(features[0].double().tolist())
        if features is not None and self.familiarity is not None:
            p_value = self.familiarity.p_value(features[0])
        if self.heads is not None and is_misoriented(image[0], self.heads):
            warnings.append(ORIENTATION)
        if p_value is not None and p_value < UNFAMILIAR:
            warnings.append(f"The image is unlike the training images (p = {p_value:.2g}).")
        if high - low > MAX_INTERVAL:
            warnings.append(f"The network is uncertain: the interval is {high - low:.1f} mm long.")
        probability = tuple(log_probability[0].exp().double().tolist())
        return MotionScore(mean, low, high, probability, embedding, p_value, tuple(warnings))


def score_t1w(
    volume: npt.NDArray[np.floating], affine: Floats, scorer: MotionScorer, quality_head: QualityHead | None = None
) -> MotionScore:
    """Return the motion score of a T1w volume, with signal in air and, with a quality-control head, grades.

    Parameters
    ----------
    volume : ndarray
        (i, j, k) in any unit; after `preprocess.anat.correct_bias` if `scorer.bias_corrected`, else as acquired.
    affine : ndarray
        (4, 4) voxel to mm.
    scorer : MotionScorer
    quality_head : QualityHead, optional
        Trained on embeddings of the same weights.

    Raises
    ------
    InputError
        If the volume cannot be a T1w of a head; see `MotionScorer.score`.
    """
    image = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    found = scorer.score(image, affine)
    upright, voxel_size = reorient(image.reshape(image.shape[:3]), affine)
    air = tuple(signal_in_air(upright.numpy(), voxel_size).tolist())
    grades = {} if quality_head is None else quality_head.probabilities(found.embedding)
    return replace(found, air=air, grades=grades)


def load_network(folder: Path) -> tuple[SFCN, Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the network of a folder that `save_scorer` wrote, all tensors, and the notes about its training.

    The grid of its input may differ from `GRID`: such a network can still start a training.

    Raises
    ------
    WeightsError
        If the weights are damaged, or made for something else.
    """
    tensors, notes = load_weights(folder, IDENTITY)
    try:
        options: dict[str, Any] = dict(notes["architecture"])
        options["channels"] = tuple(options["channels"])
        network = SFCN(Architecture(**options))
        network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(OTHER_VERSION.format(folder, error)) from error
    return network, tensors, notes


def save_scorer(
    folder: Path,
    network: SFCN,
    familiarity: Familiarity,
    heads: Tensor,
    notes: Mapping[str, Any],
    *,
    bias_corrected: bool = False,
) -> None:
    """Write weights that `MotionScorer.load` reads.

    Parameters
    ----------
    folder : Path
    network : SFCN
    familiarity : Familiarity
        From the embeddings of training images.
    heads : Tensor
        From `head_axes.mean_heads`.
    notes : mapping
        About the training.
    bias_corrected : bool
        Whether the network was trained on images after N4.
    """
    known = {
        "architecture": network.architecture.to_dict(),
        "spacing": GRID.spacing,
        "shape": list(GRID.shape),
        "bias_corrected": bias_corrected,
    }
    tensors = network.state_dict() | familiarity.to_tensors() | {HEADS: heads}
    save_weights(folder, tensors, IDENTITY, {**notes, **known})


def _compare(found: str, stated: str | None, path: Path) -> None:
    if stated is not None and found != stated.lower():
        raise WeightsError(f"{path} has SHA-256 {found}, expected {stated}: it is another file.")
