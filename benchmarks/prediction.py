"""Speed of prediction of networks, relative to the machine's rate of float32 matrix products, as a Markdown table.

It covers all of `predict`: from signals in memory to estimates, standard deviations and statuses. Rates are per second
of processor time of one core, from the fastest of several runs, so other programs matter little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from qmri_bidsapp.core.simulation import Noise
from qmri_bidsapp.estimators.learned.mlp import MultilayerPerceptron
from qmri_bidsapp.estimators.learned.training import Training
from qmri_bidsapp.evaluation.table3 import table3
from qmri_bidsapp.models.smt import SphericalMeanTechnique

#: Order of the square matrices that determine the machine's rate.
ORDER = 2048
#: Name -> hidden layers and activation, of Gyori et al. 2021 and of the default.
NETWORKS = {"280, 280, relu": ((280, 280), "relu"), "64, 64, 64, silu": ((64, 64, 64), "silu")}


def core_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the minimum processor time of some work, s."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    left, right = torch.randn(2, ORDER, ORDER)
    rate = 2 * ORDER**3 / core_seconds(lambda: torch.mm(left, right), arguments.repeats)
    print(f"Products of float32 matrices: {rate / 1e9:.0f} GFLOP per second of one core\n")
    signal = table3.simulate(-(-arguments.voxels // 441)).reshape(-1, 5)[: arguments.voxels].astype(np.float32)
    print("| hidden layers | operations per voxel | voxels per second of one core | fraction of the rate |")
    print("| --- | ---: | ---: | ---: |")
    for name, (hidden, activation) in NETWORKS.items():
        # An untrained network is as fast as a trained one.
        network = MultilayerPerceptron(
            SphericalMeanTechnique(),
            noise=Noise("gaussian", (table3.SNR, table3.SNR)),
            hidden=hidden,
            activation=activation,
            training=Training(steps=5),
            n_combinations=2**13,
        ).fit(table3.PROTOCOL)
        sizes = (5, *hidden, 6)
        operations = 2 * sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        torch.set_num_threads(arguments.threads)
        seconds = core_seconds(lambda e=network: e.predict(signal), arguments.repeats) / len(signal)
        torch.set_num_threads(1)
        share = operations / seconds / rate
        print(f"| {name} | {operations:,} | {1 / seconds:,.0f} | {100 * share:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
