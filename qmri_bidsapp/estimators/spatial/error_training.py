"""Training and calibration of the error head of a frozen spatial network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from qmri_bidsapp.artifacts.checkpoints import read_facts, restore_checkpoint, save_checkpoint
from qmri_bidsapp.core.acquisition import Acquisition
from qmri_bidsapp.estimators.spatial.error_head import HALF_WIDTH, ErrorHead, SliceNetwork, brightest
from qmri_bidsapp.estimators.spatial.patches import PATCH_SIZE, SNR_SIGNAL, Batch, draw_batch
from qmri_bidsapp.estimators.spatial.slices import Coordinates, Slices
from qmri_bidsapp.estimators.spatial.training import LOG, MAX_GRADIENT
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.solvers.gradient_descent import descend, one_thread, plateau, seeded

CHECKPOINT = "head.safetensors"
#: Shares of the iterations during which the learning rate rises at the beginning and falls to zero at the end.
WARM_UP_SHARE = 0.02
DECAY_SHARE = 0.5
#: Every `ALONE_EVERY`-th iteration uses voxels without neighbours, `N_ALONE` of each series.
ALONE_EVERY = 4
N_ALONE = 256
#: Signal-to-noise ratios at which coverage is measured.
SNRS = (3, 5, 10, 20, 50, 100)
#: First element of the seeds of the batches for each purpose, so that no batch is drawn twice.
TRAINING, CALIBRATION, VALIDATION = 1_000_001, 1_000_002, 1_000_003


@dataclass(frozen=True)
class HeadOptions:
    """How an error head is trained.

    Attributes
    ----------
    n_iterations : int
    learning_rate : float
        Of Adam, after the warm-up and before the decay.
    n_series : int
        Patches of a batch, each with its own protocol.
    size : int
        Voxels along a side of a patch.
    n_calibration, n_validation : int
        Number of batches for the factor, and for the coverage at each SNR.
    seed : int
        Of weights and batches.
    """

    n_iterations: int = 1000
    learning_rate: float = 3e-3
    n_series: int = 8
    size: int = PATCH_SIZE
    n_calibration: int = 80
    n_validation: int = 20
    seed: int = 0


def train_head(
    network: SliceNetwork,
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: HeadOptions,
    *,
    facts: dict[str, Any] | None = None,
    folder: Path | None = None,
    protocol: Acquisition | None = None,
    every: int = 250,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> ErrorHead:
    r"""Train the error head of a network, or continue from the checkpoint in a folder. The network does not change.

    The loss is the Gaussian negative log-likelihood of the network's errors :math:`e`, :math:`\ln s + e^2 / 2 s^2`
    (Nix and Weigend 1994, IEEE ICNN 1:55), averaged over the voxels of a patch, then over patches and parameters.

    Parameters
    ----------
    network : SliceNetwork
        Ready for use.
    model, heads, folder, protocol, every, report
        As for `training.train_on_heads`. A checkpoint of another network, other options or other facts is ignored.
    options : HeadOptions
    facts : dict, optional
        Plain data that a checkpoint must have to be used.

    Returns
    -------
    ErrorHead
        Ready for use, with a factor of one; see `calibrate`.
    """
    n_iterations = options.n_iterations

    def rate(iteration: int) -> float:
        return plateau(iteration, n_iterations, rise=WARM_UP_SHARE * n_iterations, fall=DECAY_SHARE * n_iterations)

    def loss(iteration: int) -> torch.Tensor:
        batch = _draw(model, heads, options, protocol, (TRAINING, iteration))
        return _loss(network, head, batch, iteration, options.seed)

    with one_thread():
        with seeded(options.seed):
            head = ErrorHead(network.n_known, len(model.parameters))
        optimiser = torch.optim.Adam(head.parameters(), lr=options.learning_rate)
        identity = _plain({"network": _sha256(network), "options": asdict(options), "facts": facts})
        start = 0 if folder is None else _restore(folder / CHECKPOINT, head, optimiser, identity)
        losses = []
        steps = range(start, n_iterations)
        for iteration, value in descend(loss, [optimiser], rate, steps=steps, max_norm=MAX_GRADIENT):
            losses.append(value)
            if (iteration + 1) % every == 0 or iteration + 1 == n_iterations:
                row = {"head_iteration": iteration + 1, "loss": float(np.mean(losses))}
                losses = []
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    done = {**identity, "iteration": iteration + 1}
                    save_checkpoint(folder / CHECKPOINT, {"head": head}, {"optimiser": optimiser}, done)
                    with (folder / LOG).open("a") as log:
                        log.write(json.dumps(row) + "\n")
                report(row)
    return head.eval().requires_grad_(False)


def calibrate(
    network: SliceNetwork,
    head: ErrorHead,
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: HeadOptions,
    *,
    protocol: Acquisition | None = None,
) -> None:
    """Set the head's factor so that intervals of 1.96 standard deviations cover the truth in 95 % of the voxels."""
    with one_thread():
        ratios = torch.cat(
            [
                error_ratios(network, head, model, _draw(model, heads, options, protocol, (CALIBRATION, index)))
                for index in range(options.n_calibration)
            ]
        )
    head.factor.mul_(torch.as_tensor(np.quantile(ratios.numpy(), 0.95, axis=0) / HALF_WIDTH))


def coverage(
    network: SliceNetwork,
    head: ErrorHead,
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: HeadOptions,
    *,
    protocol: Acquisition | None = None,
) -> dict[str, dict[str, float]]:
    """Return the coverage of 95 % intervals on heads for every parameter, at each of `SNRS` and overall."""
    found = {}
    for snr in SNRS:
        batches = (
            _draw(model, heads, options, protocol, (VALIDATION, snr, index), SNR_SIGNAL / snr)
            for index in range(options.n_validation)
        )
        ratios = torch.cat([error_ratios(network, head, model, batch) for batch in batches])
        found[str(snr)] = (ratios <= HALF_WIDTH).double().mean(0)
    found["all"] = torch.stack(list(found.values())).mean(0)
    return {
        parameter.name: {snr: round(float(shares[index]), 4) for snr, shares in found.items()}
        for index, parameter in enumerate(model.parameters)
    }


@torch.no_grad()
def error_ratios(network: SliceNetwork, head: ErrorHead, model: SignalModel, batch: Batch) -> torch.Tensor:
    """Return errors over standard deviations, both in the parameters' units, (n_voxels, n_parameters)."""
    coordinates = Coordinates(model)
    normal, known = network.known(batch.series)
    found, truth, std = (part.movedim(1, -1)[batch.counts] for part in (normal, batch.truth, head.std(known)))
    theta = coordinates.physical(found)
    return (theta - coordinates.physical(truth)).abs() / (coordinates.slope(theta) * std)


def alone(batch: Batch, model: SignalModel, rng: np.random.Generator) -> Batch:
    """Return `N_ALONE` voxels of each series, each as its own slice with its largest signal as the unit."""
    coordinates = Coordinates(model)
    counts = torch.split(batch.counts, [len(series.signals) for series in batch.series])
    truths = torch.split(batch.truth, [len(series.signals) for series in batch.series])
    series_of, truth_of = [], []
    for series, counted, truth in zip(batch.series, counts, truths, strict=True):
        choice = torch.as_tensor(rng.integers(max(int(counted.sum()), 1), size=N_ALONE))
        if not counted.any():
            continue
        signals = series.signals[counted][choice]
        unit = signals.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(signals.dtype).tiny)
        noise = series.noise_std.expand(counted.shape)[counted][choice].view(-1, 1) / unit
        theta = coordinates.physical(truth.movedim(1, -1)[counted][choice])
        theta[:, :1] /= unit
        inside = torch.ones(N_ALONE, 1, 1, dtype=torch.bool)
        voxels = (signals / unit).view(N_ALONE, 1, 1, -1)
        series_of.append(Slices(series.acquisition, voxels, inside, noise.view(-1, 1, 1), series.is_rician))
        truth_of.append(coordinates.normal(theta).view(N_ALONE, -1, 1, 1))
    truth = torch.cat(truth_of)
    return Batch(series_of, truth, torch.ones(len(truth), 1, 1, dtype=torch.bool))


def _draw(
    model: SignalModel,
    heads: Sequence[npt.NDArray[np.uint8]],
    options: HeadOptions,
    protocol: Acquisition | None,
    seed: tuple[int, ...],
    noise_std: float | None = None,
) -> Batch:
    """Return a batch of patches, each of its own series."""
    return draw_batch(
        model,
        heads,
        (options.seed, *seed),
        n_protocols=options.n_series,
        n_patches=1,
        size=options.size,
        protocol=protocol,
        noise_std=noise_std,
    )


def _loss(network: SliceNetwork, head: ErrorHead, batch: Batch, iteration: int, seed: int) -> torch.Tensor:
    """Return the loss of the head on a batch; scale its inputs by the first one, and note the lowest SNR so far."""
    if (iteration + 1) % ALONE_EVERY == 0:
        batch = alone(batch, network.model, np.random.default_rng([seed, TRAINING, iteration, 1]))
    else:
        snr = torch.cat([brightest(series, per_slice=True) / series.noise_std.flatten() for series in batch.series])
        lowest = head.lowest_snr if iteration else snr.new_tensor(torch.inf)
        head.lowest_snr.copy_(torch.minimum(lowest, snr.min()))
    with torch.no_grad():
        normal, known = network.known(batch.series)
    if iteration == 0:
        seen = known.movedim(1, -1)[batch.counts]
        head.input_mean.copy_(seen.mean(0))
        head.input_std.copy_(seen.std(0).clamp(min=1e-3))
    counts = batch.counts.unsqueeze(1)
    log_std = head(known)
    cost = (log_std + (batch.truth - normal).square() * (-2 * log_std).exp() / 2) * counts
    loss: torch.Tensor = (cost.sum((-1, -2)) / counts.sum((-1, -2)).clamp(min=1)).mean()
    return loss


def _restore(path: Path, head: ErrorHead, optimiser: torch.optim.Optimizer, identity: dict[str, Any]) -> int:
    """Restore the state of a checkpoint of the same training, if there is one; return the iterations done."""
    if not path.exists():
        return 0
    facts = read_facts(path)
    iteration = int(facts.pop("iteration"))
    if facts != identity:
        return 0
    restore_checkpoint(path, {"head": head}, {"optimiser": optimiser})
    return iteration


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Return data as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _sha256(network: SliceNetwork) -> str:
    """Return the content hash of a network's weights."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in network.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()
