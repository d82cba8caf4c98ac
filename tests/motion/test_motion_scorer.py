"""The score of one volume: from weights to warnings, and what is refused."""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.heads import made_up_head
from torch import nn

from qmri_bidsapp.errors import InputError, UsageError, WeightsError
from qmri_bidsapp.motion.air import signal_in_air
from qmri_bidsapp.motion.checks import check_head, check_shape
from qmri_bidsapp.motion.familiarity import Familiarity
from qmri_bidsapp.motion.head_axes import mean_heads
from qmri_bidsapp.motion.network import SFCN, Architecture
from qmri_bidsapp.motion.network_input import GRID, find_head, prepare, reorient
from qmri_bidsapp.motion.qc_head import QualityHead
from qmri_bidsapp.motion.scorer import SHIPPED, MotionScorer, save_scorer, score_t1w

HEAD, AFFINE = made_up_head()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights that were never trained, with statistics of random embeddings."""
    torch.manual_seed(0)
    network = SFCN(Architecture(channels=(8, 8, 8, 8, 8, 8)))
    familiarity = Familiarity.learn(torch.randn(200, 24), list(range(200)))
    path = tmp_path_factory.mktemp("weights") / "motion"
    save_scorer(path, network, familiarity, mean_heads([prepare(HEAD, AFFINE, GRID)], ["real"]), {"seed": 0})
    return path


def warnings_of(volume: torch.Tensor, affine: np.ndarray) -> str:
    data, found = check_shape(volume, affine)
    turned, size = reorient(data, affine)
    return " ".join(found + check_head(turned, size, find_head(turned, size.tolist(), GRID)))


def test_scores_are_those_of_the_network_and_repeat(folder):
    scorer = MotionScorer.load(folder)
    found = scorer.score(HEAD, AFFINE)
    assert found == MotionScorer.open(folder).score(HEAD, AFFINE)
    assert sum(found.probability) == pytest.approx(1, abs=1e-5)
    assert found.mean == pytest.approx(np.dot(found.probability, found.bins()), abs=1e-4)
    assert found.low < found.mean < found.high
    assert len(found.embedding) == 24
    # All bins are about as likely for a network that learned nothing.
    assert "uncertain" in " ".join(found.warnings)
    assert "does not match the header" not in " ".join(found.warnings)


def test_a_t1w_is_scored_with_signal_in_air_and_grades(folder):
    scorer = MotionScorer.load(folder)
    rng = np.random.default_rng(0)
    quality_head = QualityHead.learn(rng.normal(size=(40, 24)), np.repeat([1.0, 2.0], 20))
    # Left first, as files of FSL are.
    found = score_t1w(HEAD.numpy()[::-1], AFFINE @ np.diag([-1.0, 1, 1, 1]), scorer, quality_head)
    assert found.mean == pytest.approx(scorer.score(HEAD, AFFINE).mean, abs=1e-5)
    np.testing.assert_allclose(found.air, signal_in_air(HEAD.numpy(), np.full(3, 2.4)), rtol=1e-6)
    assert found.grades == quality_head.probabilities(found.embedding)
    assert "grades" not in score_t1w(HEAD.numpy(), AFFINE, scorer).to_dict()


def test_weights_of_the_program_are_for_this_version():
    assert MotionScorer.load(SHIPPED).notes["spacing"] == GRID.spacing


def test_orientation_of_the_file_does_not_matter(folder):
    scorer = MotionScorer.load(folder)
    turned = HEAD.permute(2, 0, 1).flip(1)
    affine = np.array([[0, -2.4, 0, 189.6], [0, 0, 2.4, 0], [2.4, 0, 0, 0], [0, 0, 0, 1]])
    assert scorer.score(turned, affine).mean == pytest.approx(scorer.score(HEAD, AFFINE).mean, abs=1e-5)


def test_weights_are_checked_by_hash(folder):
    good = MotionScorer.load(folder).sha256
    MotionScorer.load(folder, good.upper())
    with pytest.raises(WeightsError, match="SHA-256"):
        MotionScorer.load(folder, "0" * 64)


class Published(nn.Module):
    """Stands for the published model: fixed bins; `form` is what it gives."""

    def __init__(self, form: str, n_bins: int = 50) -> None:
        super().__init__()
        self.form, self.n_bins = form, n_bins

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape == (1, 1, 160, 192, 160)
        assert float(image.min()) == 0 and float(image.max()) == 1  # noqa: PT018
        logits = torch.zeros(1, self.n_bins)
        logits[0, 20] = 5.0
        if self.form == "probability":
            return torch.softmax(logits, 1)
        return torch.log_softmax(logits, 1) if self.form == "log" else logits


class Pair(nn.Module):
    """Gives two things."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return image, image


@pytest.mark.parametrize("form", ["probability", "log", "logits"])
def test_published_model_in_any_form(form, tmp_path):
    file = tmp_path / "model.pt"
    torch.jit.script(Published(form)).save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found = MotionScorer.open(file, digest).score(HEAD, AFFINE)
    weights = torch.softmax(torch.tensor([5.0] + [0.0] * 49), 0).double()
    assert found.probability[20] == pytest.approx(float(weights[0]), abs=1e-6)
    # Bins of 0.1 mm from -0.5 mm: the centre of the 21st is 1.55 mm, that of all 2 mm.
    assert found.mean == pytest.approx(float(weights[0]) * 1.55 + float(weights[1]) * (100 - 1.55), abs=1e-4)
    assert found.p_value is None
    assert found.embedding == ()
    with pytest.raises(WeightsError, match="it is another file"):
        MotionScorer.open(file, "1" * 64)


def test_files_that_are_no_such_model(tmp_path):
    (tmp_path / "text.pt").write_text("no")
    with pytest.raises(WeightsError, match="not a TorchScript file"):
        MotionScorer.open(tmp_path / "text.pt")
    with pytest.raises(WeightsError, match="cannot be read"):
        MotionScorer.open(tmp_path / "absent.pt")
    torch.jit.script(Published("log", 40)).save(str(tmp_path / "forty.pt"))
    with pytest.raises(WeightsError, match="40 numbers"):
        MotionScorer.open(tmp_path / "forty.pt")
    torch.jit.script(Pair()).save(str(tmp_path / "pair.pt"))
    with pytest.raises(WeightsError, match="returns a tuple"):
        MotionScorer.open(tmp_path / "pair.pt")


def test_p_values_of_new_images_are_uniform_and_strange_ones_small():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, 12))
    # Few images for many features: distances within the sample would be far too small.
    known = torch.from_numpy(rng.standard_t(8, size=(60, 12)) @ mixing)
    p_values = []
    for _ in range(20):
        familiarity = Familiarity.learn(known, np.arange(60).tolist())
        p_values += [familiarity.p_value(torch.from_numpy(rng.standard_t(8, size=12) @ mixing)) for _ in range(25)]
        known = torch.from_numpy(rng.standard_t(8, size=(60, 12)) @ mixing)
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.04)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)
    assert familiarity.p_value(torch.full((12,), 1e3)) == pytest.approx(1 / 61)
    assert familiarity.p_value(torch.full((12,), float("nan"))) == pytest.approx(1 / 61)
    again = Familiarity.from_tensors(familiarity.to_tensors())
    assert again.p_value(known[0]) == familiarity.p_value(known[0])
    with pytest.raises(UsageError, match="at least 5 heads"):
        Familiarity.learn(known, [0] * 60)


def test_an_ordinary_head_has_no_warning():
    assert warnings_of(HEAD, AFFINE) == ""


def sphere() -> torch.Tensor:
    axis = (torch.arange(50) - 24.5) * 4
    grid = torch.meshgrid(axis, axis, axis, indexing="ij")
    return 100.0 * (sum(part**2 for part in grid) < 80**2) + torch.rand(50, 50, 50)


OBLIQUE = AFFINE @ np.block(
    [[np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]), np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]]
)


@pytest.mark.parametrize(
    ("volume", "affine", "words"),
    [
        (HEAD[:40], AFFINE, "mm wide"),
        (HEAD[:, 48:], AFFINE, "mm long"),
        (HEAD[:, :, 60:], AFFINE, "below the vertex"),
        (HEAD[:, :, :75], AFFINE, "vertex is not in the volume"),
        (HEAD.transpose(0, 1), AFFINE, "Left and right differ"),
        (HEAD.transpose(0, 2), AFFINE, "Left and right differ"),
        (HEAD, OBLIQUE, "degree off"),
        (torch.where(HEAD > 15, 110 - HEAD, HEAD), AFFINE, "contrast is not that of a T1w"),
        (torch.where(HEAD < 1, torch.nan, HEAD), AFFINE, "are NaN"),
        (HEAD - 30, AFFINE, "negative"),
        (HEAD, np.diag([2.4, 2.4, 2.6, 1]), "coarser"),
    ],
    ids=["half", "front", "upper", "no-vertex", "xy", "xz", "oblique", "inverted", "nan", "negative", "coarse"],
)
def test_odd_inputs_are_said(volume, affine, words):
    assert words in warnings_of(volume, affine)


TURNS = {
    "xy": lambda image: image.transpose(0, 1),
    "xz": lambda image: image.transpose(0, 2),
    "cyclic": lambda image: image.permute(1, 2, 0),
    "upside-down": lambda image: image.flip(2),
}
#: A made-up head has too little of a face for these.
TURNS_OF_REAL_HEADS = TURNS | {
    "yz": lambda image: image.transpose(1, 2),
    "yz-flipped": lambda image: image.transpose(1, 2).flip(2),
    "front-to-back": lambda image: image.flip(1),
    "turned": lambda image: image.flip(1, 2),
}


def test_ghosts_in_air_do_not_shift_the_input_but_are_noticed():
    # Between the thresholds of `find_head` (0.3 of the 99th percentile) and of the outline (0.15).
    level = 0.22 * torch.quantile(HEAD.flatten()[::7], 0.99)
    ghosts = torch.where(HEAD < 5, level, HEAD)
    size = [2.4, 2.4, 2.4]
    np.testing.assert_allclose(find_head(ghosts, size, GRID), find_head(HEAD, size, GRID))
    assert "full of ghosts" in warnings_of(ghosts, AFFINE)


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_axes_that_are_not_those_of_the_header_are_said(folder, turn):
    volume, affine = made_up_head(3.0, seed=1)
    assert "does not match the header" in " ".join(MotionScorer.load(folder).score(turn(volume), affine).warnings)
    assert "does not match the header" not in " ".join(MotionScorer.load(folder).score(volume.flip(0), affine).warnings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "missed"),
    [
        ("sub-head/anat/sub-head_T1w.nii.gz", set()),
        # A brain alone, turned by half a turn, is much like one in its place.
        ("sub-stripped/anat/sub-stripped_T1w.nii.gz", {"turned"}),
    ],
    ids=["whole", "stripped"],
)
def test_axes_of_heads_that_were_not_in_the_training(crops, name, missed):
    image = nib.as_closest_canonical(nib.load(crops / name))
    volume = torch.from_numpy(np.ascontiguousarray(image.dataobj, dtype=np.float32))
    scorer, size = MotionScorer.load(SHIPPED), image.header.get_zooms()
    said = {}
    for turn, change in {"none": lambda part: part, **TURNS_OF_REAL_HEADS}.items():
        axes = change(torch.arange(27).reshape(3, 3, 3)).flatten()
        steps = [int(abs(axes[9] - axes[0])), int(abs(axes[3] - axes[0])), int(abs(axes[1] - axes[0]))]
        turned = [float(size[(9, 3, 1).index(step)]) for step in steps]
        found = scorer.score(change(volume).contiguous(), np.diag([*turned, 1.0]))
        said[turn] = any("does not match the header" in warning for warning in found.warnings)
    assert not said.pop("none")
    assert {turn for turn, is_said in said.items() if not is_said} <= missed


@pytest.mark.parametrize(
    ("volume", "affine", "words"),
    [
        (torch.stack([HEAD, HEAD], -1), AFFINE, "three dimensions"),
        (HEAD, np.diag([1.0, 1, 5, 1]), "too coarse"),
        (HEAD, np.diag([0.0, 2, 2, 1]), "singular"),
        (torch.zeros(50, 50, 50), AFFINE, "empty"),
        (torch.full((50, 50, 50), float("nan")), AFFINE, "NaN"),
        (120 - HEAD, AFFINE, "not darker than the head"),
        (sphere(), np.diag([4.0, 4, 4, 1]), "phantom"),
        (torch.nn.functional.pad(torch.ones(4, 4, 4), (40,) * 6), AFFINE, "as large as a head"),
    ],
    ids=["4d", "thick", "singular", "empty", "all-nan", "bright-air", "phantom", "no-head"],
)
def test_what_cannot_be_scored_is_refused(folder, volume, affine, words):
    with pytest.raises(InputError, match=words):
        MotionScorer.load(folder).score(volume, affine)
