import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.network import N_BINS, SFCN, Architecture, bin_centres, soft_labels, summarise
from qmri_bidsapp.motion.network_input import Grid
from qmri_bidsapp.motion.training import pool
from qmri_bidsapp.motion.training.accuracy import ScoredImage, agreement, agreement_by_domain, predict, simulated_cases
from qmri_bidsapp.motion.training.pool import N_PLANES, PlaneSet, Simulator, to_bytes
from qmri_bidsapp.motion.training.samples import (
    BANDS,
    N_PROFILE,
    Head,
    draw_samples,
    image_head,
    label_head,
    profile_of,
)
from qmri_bidsapp.motion.training.simulation import LINEAR, Motion, still
from qmri_bidsapp.motion.training.trainer import Settings, Trainer, augment_planes, train

SMALL = Grid(6.0, (32, 32, 40), ((2, 2), (2, 2), (4, 2)))
ARCHITECTURE = Architecture(channels=(8, 8, 8, 8, 8, 8), hidden=16)


def _ball(voxel_size: float = 4.0) -> tuple[torch.Tensor, np.ndarray]:
    """A ball of 70 mm radius with a darker core, its centre 90 mm from every face."""
    n = round(180 / voxel_size)
    axis = (torch.arange(n) - (n - 1) / 2) * voxel_size
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    return 100.0 * (radius < 70) - 40.0 * (radius < 35), np.diag([voxel_size] * 3 + [1.0])


@pytest.fixture
def heads() -> list[Head]:
    volume, affine = _ball()
    labels, upright = _ball(2.0)
    labels = torch.where(labels > 80, 2.0, torch.where(labels > 0, 3.0, 0.0))
    labels = torch.nn.functional.interpolate(labels[None, None], scale_factor=2.0)[0, 0]
    return [
        image_head("a", "real", volume, affine, SMALL),
        image_head("b", "stripped", volume, affine, SMALL),
        label_head("c", labels, upright @ np.diag([0.5, 0.5, 0.5, 1]), SMALL),
    ]


def _settings(**changes: object) -> Settings:
    small = {"architecture": ARCHITECTURE, "steps_per_round": 2, "images_per_step": 2}
    return Settings(**(small | changes))


def _simulator(heads: list[Head], folder: Path, **changes: object) -> Simulator:
    small = {"seed": 0, "heads_per_round": 2, "samples_per_head": 2, "grid": SMALL}
    return Simulator(heads, folder, **(small | changes))


def test_samples_depend_on_the_seed_alone(heads: list[Head]) -> None:
    samples, again, other = (list(draw_samples(heads, 3, np.random.default_rng(seed), SMALL)) for seed in (2, 2, 3))
    assert len(samples) == 3
    for (image, score, profile), (same, *_), (different, *_) in zip(samples, again, other, strict=True):
        assert image.shape == SMALL.shape
        assert 0 <= score <= 4
        assert profile.shape == (N_PROFILE,)
        assert torch.equal(image, same)
        assert not torch.equal(image, different)
        assert image.isfinite().all()
        assert image.min() >= 0


def test_a_profile_tells_which_bands_were_disturbed() -> None:
    # A quarter into the acquisition, halfway to the centre of k-space, the head moves by 2 mm and turns by 1 degree.
    rotations, shifts = np.array([[0.0, 0, 0], [0, 1, 0]]), np.array([[0.0, 0, 0], [0, 0, 2]])
    expected = np.sqrt(2 / 5 * (80 * 2 * np.sin(np.radians(0.5))) ** 2 + 4) / 4  # about where it was before, too
    for reverse in (False, True):
        motion = Motion(rotations, shifts, np.array([0.25]), 0, LINEAR, reverse, 0.5, resolution=1.25)
        mean, largest = profile_of(motion).reshape(2, -1)
        assert BANDS[4] == pytest.approx(0.2)
        np.testing.assert_allclose(largest[:4], 0, atol=1e-12)
        np.testing.assert_allclose(largest[4:], expected, rtol=0.02)
        np.testing.assert_allclose(mean, largest / 2, atol=1e-12)  # the other half of k-space was acquired later
    assert not profile_of(still(1.0)).any()


def test_resumed_training_gives_the_same_weights(heads: list[Head], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    whole = Trainer(_settings(), folders[0])
    train(whole, _simulator(heads[:2], folders[0]), [], n_rounds=3, report=lambda _: None)
    # The rate falls to zero at the last round, so the number of rounds must be known from the start.
    with pytest.raises(KeyboardInterrupt):
        train(Trainer(_settings(), folders[1]), _simulator(heads[:2], folders[1]), [], n_rounds=3, report=_stop_at(2))
    parts = Trainer(_settings(), folders[1])
    assert parts.round == 2
    train(parts, _simulator(heads[:2], folders[1]), [], n_rounds=3, report=lambda _: None)
    for one, other in ((whole.network, parts.network), (whole.average, parts.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    lines = [json.loads(line) for line in (folders[1] / "log.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    other_seed = Trainer(_settings(seed=1), tmp_path)
    assert not torch.equal(other_seed.network.head[0].weight, Trainer(_settings(), tmp_path).network.head[0].weight)


def _stop_at(number: int):
    def report(line: str) -> None:
        if line.startswith(f"round {number}/"):
            raise KeyboardInterrupt

    return report


def test_a_checkpoint_of_other_settings_is_refused(heads: list[Head], tmp_path: Path) -> None:
    train(Trainer(_settings(), tmp_path), _simulator(heads[:1], tmp_path), [], n_rounds=1, report=lambda _: None)
    with pytest.raises(InputError, match="other settings"):
        Trainer(_settings(seed=1), tmp_path)


def test_simulated_images_are_kept_remade_and_forgotten(heads: list[Head], tmp_path: Path) -> None:
    with _simulator(heads, tmp_path, kept=2).running() as parts_for:
        first, last = parts_for(1)
        assert first.x.shape == (4, N_PLANES, 32, 40)
        assert first.y.shape == (4, N_PLANES, 32, 40)
        assert first.z.shape == (4, N_PLANES, 32, 32)
        assert len(first.scores) == len(first.profiles) == 4
        later, _ = parts_for(2)
        assert later is last
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == ["00001.npz", "00002.npz"]
    with _simulator(heads, tmp_path, kept=2).running() as parts_for:
        _same(parts_for(1)[0], first)


def _same(one: PlaneSet, other: PlaneSet) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_as_one(heads: list[Head], tmp_path: Path) -> None:
    with _simulator(heads, tmp_path).running() as parts_for:
        [alone] = parts_for(0)
    (tmp_path / "samples/00000.npz").unlink()
    with _simulator(heads, tmp_path, n_processes=2).running() as parts_for:
        _same(parts_for(0)[0], alone)


def test_stored_images_keep_what_is_dark() -> None:
    image = torch.linspace(0, 1.5, 1000).reshape(10, 10, 10)
    back = 1.5 * (to_bytes(image).astype(float) / 255) ** 2
    error = np.abs(back - image.numpy())
    assert error.max() < 0.007
    assert error[image.numpy() < 0.02].max() < 0.001


def test_kept_planes_are_those_of_the_middle(
    heads: list[Head], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.zeros(SMALL.shape)
    image[5:27, 5:27, 6:34] = 1.0
    monkeypatch.setattr(pool, "draw_samples", lambda *_: iter([(image, 1.0, np.zeros(N_PROFILE))]))
    with _simulator(heads, tmp_path).running() as parts_for:
        [part] = parts_for(0)
    for planes in (part.x, part.y, part.z):
        assert (planes.max(axis=(2, 3)) > 100).all()
    varied = augment_planes(part, 0, np.random.default_rng(0))
    assert [plane.shape for plane in varied] == [(1, 32, 40), (1, 32, 40), (1, 32, 32)]
    assert all(plane.max() > 0.5 for plane in varied)


def _part(images: torch.Tensor, scores: torch.Tensor) -> PlaneSet:
    x, y, z = (to_bytes(images.movedim(axis, 1)) for axis in (1, 2, 3))
    return PlaneSet(x, y, z, scores.numpy(), scores.numpy()[:, None] / 4 * np.ones(N_PROFILE, dtype=np.float32))


def _noisy_stripes(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Something quickly learned: the score is the amount of noise."""
    scores = torch.tensor(rng.uniform(0, 4, n), dtype=torch.float32)
    stripes = 0.5 + 0.3 * torch.cos(torch.arange(SMALL.shape[2]) / 3.0)
    noise = torch.tensor(rng.normal(0, 0.05, (n, *SMALL.shape)), dtype=torch.float32)
    return (stripes + scores[:, None, None, None] * noise).clamp_min(0), scores


def test_training_learns(tmp_path: Path) -> None:
    images, scores = _noisy_stripes(64, np.random.default_rng(2))
    trainer = Trainer(
        _settings(steps_per_round=200, images_per_step=16, warm_up=5, learning_rate=0.01, averaging=0.9), tmp_path
    )
    trainer.train_round([_part(images, scores)], 1)
    images, scores = _noisy_stripes(12, np.random.default_rng(1))
    mean, _, _ = predict(trainer.average, list(images))
    assert np.abs(mean - scores.numpy()).mean() < 0.5  # 1 mm without learning
    with torch.no_grad():
        profile = trainer.profile(trainer.network.eval().hidden(trainer.network.embed(images)))
    assert 4 * (profile - scores[:, None] / 4).abs().mean() < 0.5


def test_training_begins_with_weights_that_are_given(tmp_path: Path) -> None:
    start = SFCN(ARCHITECTURE)
    trainer = Trainer(_settings(), tmp_path, start=start)
    for network in (trainer.network, trainer.average):
        for name, value in start.state_dict().items():
            assert torch.equal(network.state_dict()[name], value), name


def test_soft_labels_and_summary_agree() -> None:
    scores = torch.tensor([0.0, 0.33, 2.0, 4.0])
    labels = soft_labels(scores)
    assert labels.shape == (4, N_BINS)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    mean, lower, upper = summarise(labels.log())
    torch.testing.assert_close(mean, scores, atol=5e-3, rtol=0)
    # 90% of a Gaussian lie within 1.645 standard deviations (0.2 mm).
    torch.testing.assert_close(upper - lower, torch.full((4,), 0.658), atol=0.04, rtol=0)
    torch.testing.assert_close((upper + lower) / 2, scores, atol=0.01, rtol=0)
    uniform = torch.full((1, N_BINS), -np.log(N_BINS))
    mean, lower, upper = summarise(uniform)
    assert (float(mean), float(lower), float(upper)) == pytest.approx((2.0, -0.25, 4.25), abs=1e-4)
    assert bin_centres(uniform)[[0, -1]].tolist() == pytest.approx([-0.45, 4.45])


def test_network_gives_distributions_that_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = SFCN(ARCHITECTURE).eval()
    images = torch.rand(3, *SMALL.shape)
    with torch.no_grad():
        together = network(images)
        apart = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.exp().sum(1), torch.ones(3))
    assert network.embed(images).shape == (3, 24)


def test_weights_stay_below_eight_megabytes() -> None:
    assert sum(value.numel() for value in SFCN().state_dict().values()) * 4 < 8e6


def _case(head: str, score: float, domain: str = "real") -> ScoredImage:
    return ScoredImage(head, domain, torch.zeros(1), score)


def test_figures_of_agreement() -> None:
    cases = [_case("a", s) for s in (0.0, 1.0, 2.0, 3.0)] + [_case("b", s, "stripped") for s in (0.0, 1.0, 2.0, 3.0)]
    mean = np.array([0.2, 1.5, 2.5, 3.5, 0.8, 1.5, 3.5, 2.5])
    figures = agreement(cases, mean, mean - 0.6, mean + 0.6)
    # Errors .5 .5 .5 .5 1.5 -.5 about a variance sum of 4.
    assert figures["r2"] == pytest.approx(1 - (5 * 0.25 + 2.25) / 4)
    assert figures["mae_mm"] == pytest.approx(4 / 6)
    assert figures["spearman_within_head"] == pytest.approx((1 + 0.5) / 2)
    assert figures["coverage_90"] == pytest.approx(5 / 6)
    assert figures["still_below_0.5"] == 0.5
    by_domain = agreement_by_domain(cases, mean, mean - 0.6, mean + 0.6)
    assert list(by_domain) == ["all", "real", "stripped"]
    assert by_domain["real"]["mae_mm"] == pytest.approx(0.5)


def test_cases_hold_the_volume_as_it_came_and_every_level() -> None:
    volume, affine = _ball()
    cases = simulated_cases("a", "real", volume, affine, 4, np.random.default_rng(0), SMALL)
    assert cases[0].score == 0
    assert [int(case.score) for case in cases[1:]] == [0, 1, 2, 3]
    mean, lower, upper = predict(SFCN(ARCHITECTURE), [case.image for case in cases])
    assert mean.shape == (5,)
    assert (lower < mean).all()
    assert (mean < upper).all()
