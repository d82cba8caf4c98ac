"""Signal models that are sums of compartments, with up to three fibre directions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import torch

from qmri_bidsapp.core.acquisition import Acquisition, Diffusion, reference_limit
from qmri_bidsapp.core.parameters import Directional, Parameter
from qmri_bidsapp.errors import ProtocolError
from qmri_bidsapp.models.base import SignalModel
from qmri_bidsapp.models.compartments import Compartment, Encoding
from qmri_bidsapp.models.differentiation import derivatives
from qmri_bidsapp.models.directions import angles_of, turns, unit_vector
from qmri_bidsapp.models.layout import Layout, along, n_distinct_axes, over_sphere, sort
from qmri_bidsapp.models.legendre import n_terms, series
from qmri_bidsapp.models.mixture import names_used
from qmri_bidsapp.models.smt import FREE_DIFFUSIVITY, HIGH_B_VALUE, MIN_DIRECTIONS, SphericalMeanTechnique

MAX_BUNDLES = 3

_S0 = Parameter("s0", "arbitrary", (0.0, 5.0), 1.0, "Signal without diffusion weighting")


def _fraction(name: str, description: str) -> Parameter:
    return Parameter(name, "1", (0.0, 1.0), 1.0, description, None, (0.0, 1.0), physical=(True, True))


def _angles(suffix: str, of: str) -> tuple[Parameter, Parameter]:
    def angle(name: str, description: str, shown: tuple[float, float]) -> Parameter:
        bounds, scale = (-180.0, 180.0), 180 / np.pi
        return Parameter(f"{name}{suffix}", "degree", bounds, scale, description, None, shown, is_periodic=True)

    polar = angle("theta", f"Polar angle of {of} from the third axis of the gradient table", (0.0, 90.0))
    return polar, angle(
        "phi", f"Azimuth of {of} about the third axis of the gradient table, from its first", (-180.0, 180.0)
    )


class Composition(SignalModel):
    r"""Sum of compartments.

    .. math:: S(b, g) = S_0 \sum_n p_n \sum_k f_k A_k(b, g \cdot \mu_n)

    A subclass names its compartments; the parameters follow. The volume fractions f_k are nested: the fraction of
    the first compartment, the share of the second in what the first leaves, and so on; the last takes the rest. All
    shares are between 0 and 1. Several bundles divide the oriented compartments in the fractions p_n, nested in the
    same way, and have all other parameters in common. Without a bundle, fibres point in all directions alike: the
    signal is the mean over the sphere of the signal of one bundle, and dispersion, which is complete, is not estimated.

    Order of the parameters: s0, shares, the compartments' own, shares of the bundles, then polar angle and
    azimuth (axes of the gradient table) of each bundle.

    Attributes
    ----------
    compartments : tuple of Compartment
        In the order in which they take their share.
    shares : tuple of Parameter
        One for each compartment but the last, in place of the usual names; volume fractions are then not derived.
    n_bundles : int
        Fibre directions; see `with_bundles`.
    tissue : tuple of Parameter
        Shares and parameters of the compartments. They are the columns of theta between s0 and those of the bundles;
        without a bundle, all but dispersion.
    needs_timing : bool
        Whether the signal depends on duration and separation of the gradient pulses.
    largest_diffusivity : float
        Upper bound of every diffusivity along fibres, mm2/s; it sets the length of the Legendre series.

    Examples
    --------
    Ball and stick (Behrens et al. 2003), ready to be registered under ``qmri_bidsapp.models``:

    >>> from qmri_bidsapp.models.compartments import Ball, Stick, PARALLEL_DIFFUSIVITY
    >>> class BallAndStick(Composition):
    ...     name = "ballstick"
    ...     title = "Ball and stick"
    ...     reference = "Behrens et al. 2003, Magn Reson Med 50:1077, eq. 5"
    ...     compartments = (Stick(), Ball(PARALLEL_DIFFUSIVITY))
    >>> [parameter.name for parameter in BallAndStick.parameters]
    ['s0', 'stick_fraction', 'parallel_diffusivity', 'theta', 'phi']
    """

    compartments: ClassVar[tuple[Compartment, ...]]
    shares: ClassVar[tuple[Parameter, ...]] = ()
    n_bundles: ClassVar[int] = 1
    largest_diffusivity: ClassVar[float] = FREE_DIFFUSIVITY
    acquisition_type: ClassVar[type[Acquisition]] = Diffusion
    bids_suffixes: ClassVar[tuple[str, ...]] = ("dwi",)
    tissue: ClassVar[tuple[Parameter, ...]]
    needs_timing: ClassVar[bool]
    _fixed: ClassVar[tuple[bool, ...]]
    _origin: ClassVar[type[Composition]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [compartment.name for compartment in cls.compartments]
        if len(set(names)) < len(names):
            raise ValueError(f"Compartments of {cls.__name__} must have distinct names, got {', '.join(names)}.")
        if not any(compartment.oriented for compartment in cls.compartments):
            raise ValueError(f"{cls.__name__} needs a compartment with an orientation.")
        if cls.shares and len(cls.shares) != len(names) - 1:
            raise ValueError(f"{cls.__name__} needs {len(names) - 1} shares, got {len(cls.shares)}.")
        shares, derived = (cls.shares, ()) if cls.shares else _share_parameters(tuple(names), "the voxel")
        # Compartments may share parameters.
        own: dict[str, Parameter] = {}
        for parameter in (p for compartment in cls.compartments for p in compartment.parameters):
            if own.setdefault(parameter.name, parameter) != parameter:
                raise ValueError(f"{cls.__name__} has two different parameters named {parameter.name}.")
        dispersions = {c.dispersion.name for c in cls.compartments if isinstance(c.dispersion, Parameter)}
        bundles = ("",) if cls.n_bundles == 1 else tuple(str(n + 1) for n in range(cls.n_bundles))
        bundle_shares, bundle_derived = _share_parameters(tuple(f"bundle{n}" for n in bundles), "the fibres")
        angles = [angle for n in bundles for angle in _angles(n, f"bundle {n}" if n else "the fibres")]
        cls._origin = vars(cls).get("_origin", cls)
        cls.tissue = (*shares, *own.values())
        cls.needs_timing = any(compartment.needs_timing for compartment in cls.compartments)
        timing = ", and the timing of the gradient pulses (SmallDelta, BigDelta)" if cls.needs_timing else ""
        cls.needs = SphericalMeanTechnique.needs + timing
        cls._fixed = tuple(cls.n_bundles == 0 and p.name in dispersions for p in cls.tissue)
        estimated = (p for p, fixed in zip(cls.tissue, cls._fixed, strict=True) if not fixed)
        first, others = bundle_shares[:1], (replace(share, saved=False) for share in bundle_shares[1:])
        cls.parameters = (_S0, *estimated, *first, *others, *angles)
        cls.derived = (*derived, *bundle_derived)
        first_angle = len(cls.parameters) - 2 * cls.n_bundles
        cls.directional = tuple(Directional(first_angle + 2 * n, "axis") for n in range(cls.n_bundles))

    @classmethod
    def with_bundles(cls, n_bundles: int) -> type[Composition]:
        """Return the same model with 0 to 3 fibre directions."""
        if not 0 <= n_bundles <= MAX_BUNDLES:
            raise ValueError(f"A composition has 0 to {MAX_BUNDLES} bundles, got {n_bundles}.")
        return _with_bundles(cls._origin, n_bundles)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by class and number of bundles, as classes made by `with_bundles` have no module of their own."""
        return _rebuild, (self._origin, self.n_bundles)

    @property
    def mixing(self) -> tuple[int, ...]:
        """The shares that no quantity of a compartment depends on; tortuosity ties one to a diffusivity."""
        used = _names_used(self._origin)
        return tuple(i for i in range(1, len(self.compartments)) if self.parameters[i].name not in used)

    def layout(self, acquisition: Acquisition, like: torch.Tensor) -> Layout:
        """Return the protocol in sorted form, with the dtype and device of `like`."""
        if not isinstance(acquisition, Diffusion):
            raise ProtocolError(f"Model {self.name} needs a diffusion protocol, got {type(acquisition).__name__}.")
        timed = self.needs_timing
        distinct, counts, direction, order = sort(acquisition, timed)
        columns = torch.as_tensor(distinct, dtype=like.dtype, device=like.device).unsqueeze(-1)
        terms = n_terms(float(distinct[0].max()) * self.largest_diffusivity)
        return Layout(
            Encoding(columns[0], columns[1] if timed else None, columns[2] if timed else None, series(terms, like)),
            counts,
            torch.as_tensor(direction, dtype=like.dtype, device=like.device),
            None if order is None else torch.as_tensor(order, device=like.device),
        )

    def series(self, tissue: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the Legendre coefficients c_l of the signal about one fibre direction, relative to S0.

        Parameters
        ----------
        tissue : Tensor
            (n, n_tissue) shares and parameters of the compartments.
        layout : Layout

        Returns
        -------
        Tensor
            (n, n_encodings, n_terms), l = 0, 2, ...; the signal is the sum of c_l P_l(g . mu).
        """
        columns = tissue[..., None, None].unbind(-3)
        values = {p.name: column for p, column in zip(self.tissue, columns, strict=True)}
        shares = columns[: len(self.compartments) - 1]
        constants = layout.encoding.series
        attenuations = [c.attenuation(constants.nodes, values, layout.encoding) for c in self.compartments]
        profile = attenuations[-1].expand(*tissue.shape[:-1], -1, len(constants.nodes))
        for share, attenuation in zip(reversed(shares), reversed(attenuations[:-1]), strict=True):
            profile = share * attenuation + (1 - share) * profile
        return profile @ constants.project

    def series_and_slopes(self, tissue: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `series` and its derivatives, (n, n_encodings, n_tissue, n_terms).

        The derivatives are automatic; models override them with a closed form where that is faster.
        """
        coefficients, slopes = derivatives(lambda value: self.series(value, layout), tissue)
        return coefficients, slopes.movedim(-1, -2)

    def signal(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return (..., n_measurements) signals for (..., n_parameters) parameters."""
        flat = theta.reshape(-1, theta.shape[-1])
        layout = self.layout(acquisition, theta)
        s0, tissue, shares, angles = self._split(flat)
        rows = self.series(tissue, layout).unsqueeze(-2)
        mu = unit_vector(angles)
        result = along(rows, mu[:, -1], layout) if self.n_bundles else over_sphere(rows, layout)
        for n in reversed(range(self.n_bundles - 1)):
            share = shares[:, n, None, None]
            result = share * along(rows, mu[:, n], layout) + (1 - share) * result
        return (s0 * result.squeeze(-2)).reshape(*theta.shape[:-1], acquisition.n_measurements)

    def jacobian(self, theta: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the derivative, (..., n_measurements, n_parameters), in closed form except for `series_and_slopes`."""
        flat = theta.reshape(-1, theta.shape[-1])
        layout = self.layout(acquisition, theta)
        s0, tissue, shares, angles = self._split(flat)
        coefficients, slopes = self.series_and_slopes(tissue, layout)
        if any(self._fixed):
            slopes = slopes[..., [k for k, fixed in enumerate(self._fixed) if not fixed], :]
        by_cosine = coefficients @ layout.encoding.series.differentiate
        rows = torch.cat([coefficients.unsqueeze(-2), slopes, by_cosine.unsqueeze(-2)], dim=-2)
        mu, rotation = unit_vector(angles), turns(angles)
        tables = [along(rows, mu[:, n], layout) for n in range(self.n_bundles)]
        # Sums over the bundles from the n-th on, and the fraction of the fibres in them.
        total = tables[-1][:, :-1] if tables else over_sphere(rows[..., :-1, :], layout)
        by_share: list[torch.Tensor] = []
        remaining = torch.cat([torch.ones_like(s0), (1 - shares).cumprod(-1)], dim=-1)[..., None, None]
        for n in reversed(range(self.n_bundles - 1)):
            share = shares[:, n, None, None]
            by_share.insert(0, remaining[:, n] * (tables[n][:, :1] - total[:, :1]))
            total = share * tables[n][:, :-1] + (1 - share) * total
        columns = [total[:, :1], *(s0.unsqueeze(-1) * block for block in (total[:, 1:], *by_share))]
        ends = torch.cat([shares, torch.ones_like(s0)], dim=-1)[..., None, None]
        directions = layout.restore(layout.direction)
        for n, table in enumerate(tables):
            # d F / d x = x (F' / x); the series of F' / x is even, as the others are.
            slope = table[:, -1:] * (mu[:, n, None] @ directions) * remaining[:, n] * ends[:, n]
            columns.append(s0.unsqueeze(-1) * slope * (rotation[:, n] @ directions))
        jacobian = torch.cat(columns, dim=-2).mT
        return jacobian.reshape(*theta.shape[:-1], acquisition.n_measurements, len(self.parameters))

    def direction(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the unit vectors of the bundles, (..., n_bundles, 3), up to sign, in the gradient table's axes."""
        return unit_vector(self._split(theta)[-1])

    def canonical(self, parameters: torch.Tensor) -> torch.Tensor:
        """Bring the angles to the upper half of the sphere, and the bundles into the order of their fractions."""
        shares = self._split(parameters)[2]
        others = parameters[..., : len(self.parameters) - 2 * self.n_bundles - shares.shape[-1]]
        axes = self.direction(parameters)
        if self.n_bundles > 1:
            fractions = torch.cat([shares[..., :1], _later_fractions(shares)], dim=-1)
            fractions, order = fractions.sort(dim=-1, descending=True, stable=True)
            axes = axes.gather(-2, order.unsqueeze(-1).expand_as(axes))
            # What is left before each bundle; nothing is left of nothing.
            left = fractions.flip(-1).cumsum(-1).flip(-1)
            shares = (fractions / left.clamp(min=torch.finfo(left.dtype).tiny))[..., :-1]
        return torch.cat([others, shares, angles_of(axes).flatten(-2)], dim=-1)

    def derive(self, theta: torch.Tensor) -> torch.Tensor:
        """Return the volume fractions, then the fractions of the bundles, that are not parameters themselves."""
        _, tissue, bundles, _ = self._split(theta)
        volumes = tissue[..., : 0 if self.shares else len(self.compartments) - 1]
        return torch.cat([_later_fractions(shares) for shares in (volumes, bundles)], dim=-1)

    def check(self, acquisition: Acquisition) -> None:
        """Require b = 0, two shells of six directions (or as many on several b-values), and pulse timings."""
        super().check(acquisition)
        diffusion = cast(Diffusion, acquisition)
        shells = diffusion.shells()
        b_value, direction = np.asarray(diffusion.b_value), np.asarray(diffusion.direction)
        limit = reference_limit(diffusion.b_value)
        weighted = {float(b_value[i].mean()): n_distinct_axes(direction[i]) for i in shells if b_value[i].max() > limit}
        counts = sorted(weighted.values())
        if b_value.min() > limit or sum(counts[:-1]) < MIN_DIRECTIONS or sum(counts) < 2 * MIN_DIRECTIONS:
            found = ", ".join(f"{count} at b = {b:.0f}" for b, count in weighted.items())
            raise ProtocolError(
                f"Model {self.name} needs b = 0 and at least {MIN_DIRECTIONS} directions on each of two shells (or as "
                f"many spread over several b-values), got {'' if b_value.min() > limit else 'b = 0 and '}"
                f"{found or 'no diffusion weighting'} s/mm2; leave the model out with --models."
            )
        if b_value.max() < HIGH_B_VALUE:
            raise ProtocolError(
                f"Model {self.name} needs b-values of at least {HIGH_B_VALUE:.0f} s/mm2, where compartments differ, "
                f"got {b_value.max():g} s/mm2 at most; leave the model out with --models."
            )
        if self.needs_timing:
            try:
                diffusion.pulse_timing()
            except ProtocolError as error:
                raise ProtocolError(
                    f"Model {self.name} needs duration and separation of the gradient pulses. {error} Add SmallDelta "
                    "and BigDelta to the sidecar of the dwi series or leave the model out with --models."
                ) from error

    def _split(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return s0 (..., 1), tissue (..., n_tissue), bundle shares and angles (..., n_bundles, 2)."""
        sizes = [1, self._fixed.count(False), max(0, self.n_bundles - 1), 2 * self.n_bundles]
        s0, tissue, shares, angles = torch.split_with_sizes(theta, sizes, dim=-1)
        return s0, self.complete(tissue), shares, angles.reshape(*theta.shape[:-1], self.n_bundles, 2)

    def complete(self, estimated: torch.Tensor) -> torch.Tensor:
        """Return (..., n_tissue) values of `tissue` from the estimated ones; complete dispersion is an ODI of one."""
        if not any(self._fixed):
            return estimated
        columns = iter(estimated.unbind(-1))
        one = torch.ones_like(estimated[..., 0])
        return torch.stack([one if fixed else next(columns) for fixed in self._fixed], dim=-1)


def _share_parameters(names: tuple[str, ...], whole: str) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
    """Return the shares of all parts but the last, and the fractions that have to be derived from them."""
    if len(names) < 2:
        return (), ()
    fractions = [_fraction(f"{name}_fraction", f"Fraction of {whole} in {name}") for name in names]
    shares = [
        _fraction(f"{name}_share", f"Share of {name} in what those before it leave of {whole}") for name in names[1:-1]
    ]
    return (fractions[0], *shares), tuple(fractions[1:])


def _later_fractions(shares: torch.Tensor) -> torch.Tensor:
    """Return (..., n) fractions of the second to the last part from (..., n) shares of all but the last."""
    remaining = (1 - shares).cumprod(-1)
    return torch.cat([remaining[..., :-1] * shares[..., 1:], remaining[..., -1:]], dim=-1)


@cache
def _names_used(cls: type[Composition]) -> frozenset[str]:
    return names_used(cls.compartments, cls.tissue)


@cache
def _with_bundles(cls: type[Composition], n_bundles: int) -> type[Composition]:
    if n_bundles == cls.n_bundles:
        return cls
    return cast(type[Composition], type(f"{cls.__name__}{n_bundles}", (cls,), {"n_bundles": n_bundles, "_origin": cls}))


def _rebuild(cls: type[Composition], n_bundles: int) -> Composition:
    return _with_bundles(cls, n_bundles)()
