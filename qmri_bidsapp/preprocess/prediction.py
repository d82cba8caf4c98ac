"""What the other volumes of a diffusion series predict for each one: a Gaussian process in the gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize

from qmri_bidsapp.core.acquisition import Diffusion, reference_limit

#: Voxels that determine the covariance between volumes: more do not change it.
MAX_VOXELS = 20_000
#: Range of the natural logarithms of deviations, relative to that of the data, and of the width of the covariance.
LOG_DEVIATION, LOG_WIDTH = (-7.0, 5.0), (-4.0, 7.0)


@dataclass(frozen=True)
class LeaveOneOut:
    """A linear prediction of every volume by the others.

    Attributes
    ----------
    matrix : ndarray
        (n, n) with a zero diagonal: ``values @ matrix.T`` are the predictions of ``values``, (n_voxels, n). A row of
        zeros where nothing predicts a volume.
    is_predicted : ndarray
        (n,) bool: another volume has its b-value.
    noise_std : float
        Standard deviation of what the process takes for noise, in the unit of the values.
    """

    matrix: npt.NDArray[np.float64]
    is_predicted: npt.NDArray[np.bool_]
    noise_std: float

    @classmethod
    def of(cls, values: npt.NDArray[np.floating], acquisition: Diffusion) -> LeaveOneOut:
        """Fit the process to a series.

        As Andersson and Sotiropoulos (2015, NeuroImage 122:166): volumes are the mean of their shell, a fixed effect,
        plus a Gaussian process, plus noise. The covariance of volumes of unit directions g and h in shells of
        deviations s and t is s t exp(((g h)^2 - 1) / w). Unlike the spherical covariance of that paper it is smooth,
        holds for antipodes and is positive for every width w; it predicts better.
        Deviations, width and noise maximise the restricted likelihood.

        Parameters
        ----------
        values : ndarray
            (n_voxels, n), aligned as far as is known.
        acquisition : Diffusion
            Of n volumes.
        """
        shells = acquisition.shells()
        sample = np.asarray(values[:: max(1, len(values) // MAX_VOXELS)], dtype=np.float64)
        label = np.zeros(acquisition.n_measurements, dtype=np.intp)
        for number, shell in enumerate(shells):
            label[shell] = number
        design = np.eye(len(shells))[label]
        centred = sample - (sample @ design / design.sum(axis=0))[:, label]
        model = _Process(acquisition, label, torch.from_numpy(centred.T @ centred / len(sample)))
        precision, noise_std = model.fit()
        scale = np.diag(precision)
        size = np.bincount(label)[label]
        is_predicted = size > 1
        matrix = np.eye(len(label)) - precision / np.where(is_predicted, scale, 1.0)[:, None]
        matrix[~is_predicted] = 0
        np.fill_diagonal(matrix, 0)
        return cls(matrix, is_predicted, noise_std)


class _Process:
    """The restricted likelihood of the process; parameters are logarithms: deviation of each shell, width, noise."""

    def __init__(self, acquisition: Diffusion, label: npt.NDArray[np.intp], covariance: torch.Tensor) -> None:
        direction = np.asarray(acquisition.direction, dtype=np.float64).reshape(-1, 3)
        norm = np.linalg.norm(direction, axis=1, keepdims=True)
        direction = np.divide(direction, norm, out=np.zeros_like(direction), where=norm > 0)
        self.squared_cosine = torch.from_numpy((direction @ direction.T) ** 2)
        is_weighted = np.asarray(acquisition.b_value) > reference_limit(acquisition.b_value)
        self.is_weighted = torch.from_numpy(is_weighted.astype(np.float64))
        self.label = torch.from_numpy(label)
        self.design = torch.from_numpy(np.eye(int(label.max()) + 1)[label])
        self.covariance = covariance

    def fit(self) -> tuple[npt.NDArray[np.float64], float]:
        """Return the precision, (n, n), with the means of the shells projected out, and the deviation of the noise."""
        n_shells = self.design.shape[1]
        scale = float(self.covariance.diagonal().mean().sqrt())
        if scale == 0:
            return np.eye(len(self.label)), 0.0
        level = float(np.log(scale))
        start = np.array([level] * n_shells + [0.0, level - 0.5])
        deviations = (level + LOG_DEVIATION[0], level + LOG_DEVIATION[1])
        bounds = [deviations] * n_shells + [LOG_WIDTH, deviations]
        found = minimize(self._loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        _, _, precision = self._factors(torch.from_numpy(found))
        return precision.numpy(), float(np.exp(found[-1]))

    def _factors(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the Cholesky factor of the covariance, the information on the means, and the precision beside them."""
        deviation = parameters[:-2].exp()[self.label] * self.is_weighted
        kernel = deviation[:, None] * deviation * ((self.squared_cosine - 1) * (-parameters[-2]).exp()).exp()
        noise = (2 * parameters[-1]).exp() * torch.eye(len(deviation), dtype=torch.float64)
        factor = torch.linalg.cholesky(kernel + noise)
        inverse = torch.cholesky_inverse(factor)
        weighted = inverse @ self.design
        information = self.design.T @ weighted
        return factor, information, inverse - weighted @ torch.linalg.solve(information, weighted.T)

    def _loss(self, parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        """Return minus twice the restricted log-likelihood per voxel, and its gradient."""
        leaf = torch.from_numpy(parameters).requires_grad_()
        factor, information, precision = self._factors(leaf)
        loss = 2 * factor.diagonal().log().sum() + torch.logdet(information) + (precision * self.covariance).sum()
        loss.backward()
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        return float(loss.detach()), gradient.numpy()
