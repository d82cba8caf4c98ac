"""The motion score of one T1w volume: from its voxels to a distribution, with warnings where it says little."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qmri_bidsapp.artifacts.weights import load_weights, save_weights, sha256_of
from qmri_bidsapp.errors import InputError, WeightsError
from qmri_bidsapp.motion.checks import check_shape, look_at_head
from qmri_bidsapp.motion.displacement import Floats
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.head_axes import lies_otherwise
from qmri_bidsapp.motion.network import N_BINS, SFCN, Architecture, bin_centres, summarise
from qmri_bidsapp.motion.network_input import GRID, Grid, find_head, prepare, reorient, resample

#: Weights that come with the program.
SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "motion"
#: What every card of weights of this kind says they are for.
IDENTITY = {"model": "motion score of a T1w", "estimator": "sfcn"}
#: Input of the published model.
PUBLISHED_GRID = Grid(1.0, (160, 192, 160), ((0, 0), (0, 0), (0, 0)))
COVERAGE = 0.9
#: Name of the coarse heads among the tensors.
HEADS = "heads"
#: A p-value below this is said to be unlike the training data.
UNLIKE = 0.01
#: An interval longer than this leaves the score open, mm.
OPEN = 2.0
OTHER_VERSION = "The weights in {} are not for this version of the network ({})."


@dataclass(frozen=True)
class MotionScore:
    """What is known of the motion during a T1w acquisition.

    Attributes
    ----------
    mean, low, high : float
        Mean and limits of the 90 % interval, mm.
    probability : tuple of float
        Of each bin.
    embedding : tuple of float
        Features of the network; empty where it gives none.
    p_value : float or None
        Part of training images that are as far from the middle of the training data; None where not known.
    warnings : tuple of str
        Why the score may be wrong.
    """

    mean: float
    low: float
    high: float
    probability: tuple[float, ...]
    embedding: tuple[float, ...] = ()
    p_value: float | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @staticmethod
    def bins() -> list[float]:
        """Return the centre of each bin, mm."""
        return [round(value, 6) for value in bin_centres(torch.zeros(1)).tolist()]


@dataclass(frozen=True)
class MotionScorer:
    """A network with the way to its input.

    Attributes
    ----------
    network : callable
        (n, x, y, z) -> (n, bin) log-probability, and (n, feature) embedding or None.
    make_input : callable
        Volume (i, j, k) and affine -> (x, y, z).
    familiarity : Familiarity or None
        How far embeddings of training images lie from their middle.
    heads : Tensor or None
        Coarse heads in their place; see `orientation.mean_heads`.
    sha256 : str
        Of the file of weights.
    bias_corrected : bool
        Whether images come after N4, as in training.
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
        """Load a folder of own weights, or else a TorchScript file; see `load` and `published`."""
        return cls.load(path, sha256) if Path(path).is_dir() else cls.published(path, sha256)

    @classmethod
    def load(cls, folder: Path, sha256: str | None = None) -> MotionScorer:
        """Load weights that `save_scorer` wrote.

        Parameters
        ----------
        folder : Path
        sha256 : str, optional
            What the file of tensors must have.

        Raises
        ------
        WeightsError
            If they are damaged, for something else, or other than stated.
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

        def look(image: Tensor) -> tuple[Tensor, Tensor]:
            features = network.embed(image)
            return network.from_features(features), features

        return cls(
            look,
            lambda volume, affine: prepare(volume, affine, GRID),
            familiarity,
            heads,
            found,
            bool(notes.get("bias_corrected", False)),
            notes,
        )

    @classmethod
    def published(cls, file: Path, sha256: str | None = None) -> MotionScorer:
        """Load the TorchScript model of Bricout and colleagues, or one with its input and output.

        Its input is 160 x 192 x 160 voxels of 1 mm after N4, scaled from least to largest into [0, 1]; its output are
        50 bins from -0.5 to 4.5 mm. It was trained on heads aligned to MNI; here the head is found, not aligned.

        Raises
        ------
        WeightsError
            If the file cannot be read as TorchScript, has another input or output, or is other than stated.
        """
        try:
            found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except OSError as error:
            raise WeightsError(f"{file} cannot be read ({error.strerror}).") from error
        _compare(found, sha256, file)
        try:
            model = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{file} is no TorchScript file ({str(error).splitlines()[0]}).") from error
        model.eval()
        trial = torch.zeros(1, *PUBLISHED_GRID.shape)
        trial[0, 0, 0, 0] = 1.0
        _log_probability(model, trial)
        return cls(
            lambda image: (_log_probability(model, image), None), _published_input, sha256=found, bias_corrected=True
        )

    @torch.no_grad()
    def score(self, volume: Tensor, affine: Floats) -> MotionScore:
        """Return the score of a T1w volume.

        Parameters
        ----------
        volume : Tensor
            (i, j, k) in any unit.
        affine : ndarray
            (4, 4) voxel to mm.

        Raises
        ------
        InputError
            If the volume cannot be a T1w of a head: 4D, empty, without a head, with thick slices, a phantom.
        """
        volume, warnings = check_shape(volume, affine)
        turned, voxel_size = reorient(volume, affine)
        centre = find_head(turned, voxel_size.tolist(), GRID)
        warnings += look_at_head(turned, voxel_size, centre)
        image = self.make_input(volume, affine)[None]
        log_probability, features = self.network(image)
        mean, low, high = (float(value[0]) for value in summarise(log_probability, COVERAGE))
        embedding: tuple[float, ...] = ()
        p_value = None
        if features is not None:
            embedding = tuple(features[0].double().tolist())
        if features is not None and self.familiarity is not None:
            p_value = self.familiarity.p_value(features[0])
        if self.heads is not None and lies_otherwise(image[0], self.heads):
            warnings.append("The head does not lie as its header says, or it is none: look at the axes of the image.")
        if p_value is not None and p_value < UNLIKE:
            warnings.append(f"The image is unlike those that the network was trained on (p = {p_value:.2g}).")
        if high - low > OPEN:
            warnings.append(f"The network is uncertain: the interval is {high - low:.1f} mm long.")
        probability = tuple(log_probability[0].exp().double().tolist())
        return MotionScore(mean, low, high, probability, embedding, p_value, tuple(warnings))


def load_network(folder: Path) -> tuple[SFCN, Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the network of a folder that `save_scorer` wrote, all its tensors, and the notes about its training.

    Its input may have been on another grid, which serves to begin a training with.

    Raises
    ------
    WeightsError
        If they are damaged, or for something else.
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
        Of the embeddings of training images.
    heads : Tensor
        From `orientation.mean_heads`.
    notes : mapping
        About the training.
    bias_corrected : bool
        Whether it was trained on images after N4.
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
        raise WeightsError(f"{path} has the SHA-256 {found}, not {stated}: it is not the file that was meant.")


def _published_input(volume: Tensor, affine: Floats) -> Tensor:
    """Return a head on the grid of the published model, in [0, 1]."""
    turned, size = reorient(volume, affine)
    voxel_size, grid = size.tolist(), PUBLISHED_GRID
    centre = find_head(turned, voxel_size, grid)
    image = resample(turned, voxel_size, centre.tolist(), grid.shape, grid.spacing).clamp_min(0)
    return (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)


def _log_probability(model: Callable[[Tensor], Any], image: Tensor) -> Tensor:
    """Return log-probabilities, whether the model gives these, their exponentials or logits."""
    try:
        output = model(image[:, None].float())
    except RuntimeError as error:
        raise WeightsError(
            f"The model does not take 160 x 192 x 160 voxels ({str(error).splitlines()[-1]})."
        ) from error
    if not isinstance(output, Tensor):
        raise WeightsError(f"The model gives a {type(output).__name__}, not a tensor of {N_BINS} bins.")
    output = output.flatten(1)
    if output.shape[1] != N_BINS:
        raise WeightsError(f"The model gives {output.shape[1]} numbers, not {N_BINS} bins.")
    if not torch.isfinite(output).all():
        raise InputError("The model gives no finite answer for this image.")
    if bool((output >= 0).all()) and abs(float(output.sum()) - len(output)) < 1e-3:
        return output.clamp_min(1e-12).log()
    return torch.log_softmax(output, dim=1)
