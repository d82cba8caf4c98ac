import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qmri_bidsapp.errors import InputError
from qmri_bidsapp.motion import training
from qmri_bidsapp.motion.accuracy import Case, agreement, agreement_by_domain, disturbed_cases, predict
from qmri_bidsapp.motion.network import N_BINS, SFCN, Architecture, bin_centres, soft_labels, summarise
from qmri_bidsapp.motion.samples import Head, draw_samples, image_head, label_head
from qmri_bidsapp.motion.score import GRIDS, Grid
from qmri_bidsapp.motion.training import Settings, Trainer, train

SMALL = Grid(6.0, (32, 32, 64), ((2, 2), (2, 2), (4, 2)))
ARCHITECTURE = Architecture(channels=(8, 8, 8, 8, 8, 8))


@pytest.fixture(autouse=True)
def _small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRIDS, 6.0, SMALL)


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
    return Settings(spacing=6.0, architecture=ARCHITECTURE, samples_per_head=2, **changes)


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
    train(whole, heads[:2], [], steps=4, report=lambda _: None)
    for steps in (2, 4):
        parts = Trainer(_settings(), folders[1])
        assert parts.step == steps - 2
        train(parts, heads[:2], [], steps=steps, report=lambda _: None)
    for one, other in ((whole.network, parts.network), (whole.average, parts.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    lines = [json.loads(line) for line in (folders[1] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    other_seed = Trainer(_settings(seed=1), tmp_path)
    assert not torch.equal(other_seed.network.head[1].weight, Trainer(_settings(), tmp_path).network.head[1].weight)


def test_a_checkpoint_of_other_settings_is_refused(heads: list[Head], tmp_path: Path) -> None:
    train(Trainer(_settings(), tmp_path), heads[:1], [], steps=1, report=lambda _: None)
    with pytest.raises(InputError, match="other settings"):
        Trainer(_settings(seed=1), tmp_path)


def _noisy_stripes(heads: object, n: int, rng: np.random.Generator, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Something quickly learned: the score is the amount of noise."""
    scores = torch.tensor(rng.uniform(0, 4, n), dtype=torch.float32)
    stripes = 0.5 + 0.3 * torch.cos(torch.arange(grid.shape[2]) / 3.0)
    noise = torch.tensor(rng.normal(0, 0.05, (n, *grid.shape)), dtype=torch.float32)
    return (stripes + scores[:, None, None, None] * noise).clamp_min(0), scores


def test_training_learns_and_validates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "draw_samples", _noisy_stripes)
    images, scores = _noisy_stripes(None, 12, np.random.default_rng(1), SMALL)
    cases = [Case("a", "real", image, score) for image, score in zip(images, scores.tolist(), strict=True)]
    trainer = Trainer(_settings(warm_up=5, learning_rate=0.01, averaging=0.8), tmp_path)
    lines: list[str] = []
    train(trainer, [], cases, steps=60, report=lines.append)
    assert "held out" in lines[-1]
    after = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert after["step"] == 60
    assert after["validation"]["all"]["mae_mm"] < 0.5  # 1 mm without learning


def test_soft_labels_and_summary_agree() -> None:
    scores = torch.tensor([0.0, 0.33, 2.0, 4.0])
    labels = soft_labels(scores)
    assert labels.shape == (4, N_BINS)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))
    mean, lower, upper = summarise(labels.log())
    torch.testing.assert_close(mean, scores, atol=1e-4, rtol=0)
    # 90% of a Gaussian lie within 1.645 standard deviations (0.1 mm, bins are 0.1 mm wide).
    torch.testing.assert_close(upper - lower, torch.full((4,), 0.329), atol=0.04, rtol=0)
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
    assert network.embed(images).shape == (3, 8)


def test_published_width_stays_below_eight_megabytes_in_half_precision() -> None:
    network = SFCN(Architecture(channels=(32, 64, 128, 256, 256, 64)))
    assert sum(value.numel() for value in network.parameters()) * 2 < 8e6


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
