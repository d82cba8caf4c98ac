import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion.accuracy import Case, agreement, agreement_by_domain, disturbed_cases, predict
from qmri_bidsapp.motion.network import N_BINS, SFCN, Architecture, bin_centres, soft_labels, summarise
from qmri_bidsapp.motion.pool import Simulator, Stack, store
from qmri_bidsapp.motion.samples import Head, draw_samples, image_head, label_head
from qmri_bidsapp.motion.score import Grid
from qmri_bidsapp.motion.training import Settings, Trainer, train, vary_planes

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
    small = {"architecture": ARCHITECTURE, "steps_per_round": 2, "images_per_step": 2, "planes_per_image": 2}
    return Settings(**(small | changes))


def _simulator(heads: list[Head], folder: Path, **changes: object) -> Simulator:
    small = {"seed": 0, "heads_per_round": 2, "samples_per_head": 2, "grid": SMALL}
    return Simulator(heads, folder, **(small | changes))


def test_samples_depend_on_the_seed_alone(heads: list[Head]) -> None:
    images, scores = draw_samples(heads, 3, np.random.default_rng(2), SMALL)
    again, _ = draw_samples(heads, 3, np.random.default_rng(2), SMALL)
    other, _ = draw_samples(heads, 3, np.random.default_rng(3), SMALL)
    assert images.shape == (3, *SMALL.shape)
    assert (scores >= 0).all()
    assert (scores <= 4).all()
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert images.isfinite().all()
    assert images.min() >= 0


def test_resumed_training_gives_the_same_weights(heads: list[Head], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    whole = Trainer(_settings(), folders[0])
    train(whole, _simulator(heads[:2], folders[0]), [], n_rounds=3, report=lambda _: None)
    # The rate falls to zero at the last round, so that the number of rounds is told from the start.
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
    with _simulator(heads, tmp_path, kept=2).running() as images_for:
        images, scores = images_for(1)
        first, last = images[0].copy(), images[7].copy()
        assert (len(images), len(scores)) == (8, 8)
        later, _ = images_for(2)
        np.testing.assert_array_equal(later[3], last)
    assert [path.name for path in sorted((tmp_path / "samples").iterdir())] == ["00001.npz", "00002.npz"]
    with _simulator(heads, tmp_path, kept=2).running() as images_for:
        np.testing.assert_array_equal(images_for(1)[0][0], first)


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_as_one(heads: list[Head], tmp_path: Path) -> None:
    with _simulator(heads, tmp_path).running() as images_for:
        alone, _ = images_for(0)
        first, last = alone[0].copy(), alone[3].copy()
    (tmp_path / "samples/00000.npz").unlink()
    with _simulator(heads, tmp_path, n_processes=2).running() as images_for:
        beside, _ = images_for(0)
        np.testing.assert_array_equal(beside[0], first)
        np.testing.assert_array_equal(beside[3], last)


def test_stored_images_keep_what_is_dark() -> None:
    image = torch.linspace(0, 1.5, 1000).reshape(10, 10, 10)
    back = 1.5 * (store(image).astype(float) / 255) ** 2
    error = np.abs(back - image.numpy())
    assert error.max() < 0.007
    assert error[image.numpy() < 0.02].max() < 0.001


def test_planes_are_those_of_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((20, 30, 40), dtype=np.uint8)
    image[3:17, 4:26, 6:34] = 200
    planes = vary_planes(image, 5, np.random.default_rng(0))
    assert [plane.shape for plane in planes] == [(5, 30, 40), (5, 20, 40), (5, 20, 30)]
    assert all((plane.max(axis=(1, 2)) > 0.5).all() for plane in planes)


def _noisy_stripes(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Something quickly learned: the score is the amount of noise."""
    scores = torch.tensor(rng.uniform(0, 4, n), dtype=torch.float32)
    stripes = 0.5 + 0.3 * torch.cos(torch.arange(SMALL.shape[2]) / 3.0)
    noise = torch.tensor(rng.normal(0, 0.05, (n, *SMALL.shape)), dtype=torch.float32)
    return (stripes + scores[:, None, None, None] * noise).clamp_min(0), scores


def test_training_learns(tmp_path: Path) -> None:
    images, scores = _noisy_stripes(64, np.random.default_rng(2))
    trainer = Trainer(
        _settings(steps_per_round=100, images_per_step=8, warm_up=5, learning_rate=0.01, averaging=0.9), tmp_path
    )
    trainer.train_round(Stack([store(images)]), scores.numpy(), 1)
    images, scores = _noisy_stripes(12, np.random.default_rng(1))
    mean, _, _ = predict(trainer.average, list(images))
    assert np.abs(mean - scores.numpy()).mean() < 0.5  # 1 mm without learning


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


def _case(head: str, score: float, domain: str = "real") -> Case:
    return Case(head, domain, torch.zeros(1), score)


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
    cases = disturbed_cases("a", "real", volume, affine, 4, np.random.default_rng(0), SMALL)
    assert cases[0].score == 0
    assert [int(case.score) for case in cases[1:]] == [0, 1, 2, 3]
    mean, lower, upper = predict(SFCN(ARCHITECTURE), [case.image for case in cases])
    assert mean.shape == (5,)
    assert (lower < mean).all()
    assert (mean < upper).all()
