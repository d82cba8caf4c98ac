"""The training loop: learns, repeats, resumes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qmri_bidsapp.errors import UsageError, WeightsError
from qmri_bidsapp.estimators.learned import training
from qmri_bidsapp.estimators.learned.optimisers import FTRL
from qmri_bidsapp.estimators.learned.training import OPTIMISERS, PENALISED, Training, train_network


def network() -> nn.Linear:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(0.1)
        layer.bias.zero_()
    return layer


def loss_of(layer: nn.Linear):
    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(64, 2, generator=generator)
        target = x @ torch.tensor([[2.0], [-1.0]]) + 0.5 + 0.1 * torch.randn(64, 1, generator=generator)
        return (layer(x) - target).square().mean()

    return loss


def run(layer: nn.Linear, seed: int = 0, **options) -> nn.Linear:
    checkpoint, progress = options.pop("checkpoint", None), options.pop("progress", None)
    chance = torch.Generator().manual_seed(seed)
    train_network(layer, loss_of(layer), Training(**options), chance, progress=progress, checkpoint=checkpoint)
    return layer


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_finds_the_regression(optimiser):
    layer = run(network(), steps=3000, optimiser=optimiser)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[2.0, -1.0]]), atol=0.02, rtol=0)
    torch.testing.assert_close(layer.bias.detach(), torch.tensor([0.5]), atol=0.02, rtol=0)


def test_repeats_with_the_seed_and_only_with_it():
    first, again, other = (run(network(), seed, steps=50).weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_goes_on_from_a_checkpoint_as_if_never_stopped(optimiser, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 20)
    whole = run(network(), steps=100, optimiser=optimiser)
    stopped, path = network(), tmp_path / "state.safetensors"

    def stop(step: int, value: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "REPORT_EVERY", 50)
    with pytest.raises(KeyboardInterrupt):
        run(stopped, steps=100, optimiser=optimiser, checkpoint=path, progress=stop)
    assert path.exists()
    resumed = run(network(), seed=9, steps=100, optimiser=optimiser, checkpoint=path)
    assert torch.equal(resumed.weight, whole.weight)
    assert not path.exists()


def test_a_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="delete it to start again"):
        run(network(), checkpoint=path)


def test_reports_progress_and_divergence():
    seen: list[tuple[int, float]] = []
    run(network(), steps=200, progress=lambda step, value: seen.append((step, value)))
    assert [step for step, _ in seen] == [100, 200]
    assert seen[1][1] < seen[0][1]
    layer = network()
    with pytest.raises(UsageError, match="the loss of step 1 is nan"):
        train_network(layer, lambda _: layer.weight.sum() * torch.nan, Training(steps=50), torch.Generator())
    with pytest.raises(UsageError, match="must be positive, got 0"):
        Training(learning_rate=0)


def test_penalties_make_weights_smaller_and_are_refused_where_they_do_not_act():
    for optimiser in PENALISED:
        plain, penalised = (run(network(), steps=1000, optimiser=optimiser, l1=l1).weight for l1 in (0.0, 0.4))
        # Half the square of the loss: l1 takes 0.2 away from weights of unit variance.
        torch.testing.assert_close(plain.abs() - penalised.abs(), torch.full((1, 2), 0.2), atol=0.03, rtol=0)
    with pytest.raises(UsageError, match=r"for ftrl and proximal-adagrad; got 0.1 and 0.0 for adam"):
        Training(l1=0.1)


def test_parts_have_their_own_optimisers_and_a_checkpoint_holds_both(tmp_path, monkeypatch):
    def trained(layer: nn.Linear, **options) -> nn.Linear:
        optimisers = (FTRL([layer.weight], 0.1), torch.optim.Adam([layer.bias], 0.01))
        chance = torch.Generator().manual_seed(0)
        train_network(layer, loss_of(layer), Training(steps=100), chance, optimisers=optimisers, **options)
        return layer

    def stop(step: int, value: float) -> None:
        raise KeyboardInterrupt

    whole = trained(network())
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 20)
    monkeypatch.setattr(training, "REPORT_EVERY", 50)
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(network(), checkpoint=path, progress=stop)
    resumed = trained(network(), checkpoint=path)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_unknown_optimiser_and_no_step():
    with pytest.raises(UsageError, match="no optimiser 'magic'; known: adam, sgd, ftrl, proximal-adagrad"):
        Training(optimiser="magic")
    with pytest.raises(UsageError, match="at least one step"):
        Training(steps=0)
