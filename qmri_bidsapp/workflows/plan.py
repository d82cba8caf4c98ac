"""Plan of the work for each subject, decided from plain data before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qmri_bidsapp.errors import ProtocolError, WeightsError
from qmri_bidsapp.workflows.joined import advice_to_join
from qmri_bidsapp.workflows.motion_score import find_motion_weights
from qmri_bidsapp.workflows.steps import skip_notes, skipped_of

if TYPE_CHECKING:
    from qmri_bidsapp.bids.inputs import InputGroup, SubjectInputs
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.core.acquisition import Acquisition
    from qmri_bidsapp.estimators.base import Estimator
    from qmri_bidsapp.estimators.trained import TrainedEstimator
    from qmri_bidsapp.models.base import SignalModel
    from qmri_bidsapp.workflows.motion_score import MotionWeights

NO_FIELD = "no TB1map: the transmit field is assumed to be 1; a relative error x in it causes one of about 2x in T1"
NO_RESIDUALS = "with as many parameters as images there are no residuals to estimate the noise from"


@dataclass(frozen=True)
class SeriesPlan:
    """One quantitative series with the (model, estimator) pairs that will be fitted to it.

    Those in `bundle_fits` are fitted with as many bundles as the voxel has fibre directions. `skip` names the steps of
    preprocessing that the user leaves out, `denoise` the method of `config.DENOISING`.
    """

    group: InputGroup
    fits: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    bundle_fits: tuple[tuple[str, str], ...] = ()
    skip: tuple[str, ...] = ()
    denoise: str = "mppca"

    @property
    def node_name(self) -> str:
        """Name for the graph: the series' name, letters, digits and underscores only."""
        return "".join(char if char.isalnum() else "_" for char in self.group.name).lower()

    def has_residuals(self, model_name: str) -> bool:
        """Whether the noise of a fit can be estimated from its residuals; in diffusion it is known without them."""
        from qmri_bidsapp.registry import get_model

        model = get_model(model_name)
        protocol, _ = model.adapt(self.group.acquisition)  # type: ignore[arg-type]
        return self.group.row.is_diffusion or protocol.n_measurements > len(model.parameters)

    def objection_to_certificate(self, model_name: str, estimator_name: str) -> str | None:
        """Return why a fit gets no certificate, None if it does."""
        from qmri_bidsapp.registry import get_estimator

        if get_estimator(estimator_name).is_spatial:
            return f"{estimator_name} works on images; single simulated voxels cannot certify it"
        if (model_name, estimator_name) in self.bundle_fits:
            return "the number of bundles differs from voxel to voxel"
        return None if self.has_residuals(model_name) else NO_RESIDUALS


@dataclass(frozen=True)
class SubjectPlan:
    """All that will be done for one subject.

    Attributes
    ----------
    inputs : SubjectInputs
        What was found, with the problems met.
    t1w : tuple of InputGroup
        T1w images.
    series : tuple of SeriesPlan
        Quantitative series.
    errors : tuple of str
        Why a model that was asked for cannot be fitted.
    motion_weights : MotionWeights or None
        Files that T1w images are scored with; None without motion scores.
    skip : tuple of str
        Steps that the user leaves out of the preprocessing of T1w images.
    """

    inputs: SubjectInputs
    t1w: tuple[InputGroup, ...]
    series: tuple[SeriesPlan, ...]
    errors: tuple[str, ...] = ()
    motion_weights: MotionWeights | None = None
    skip: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """Label, without ``sub-``."""
        return self.inputs.subject

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.t1w and not any(item.fits for item in self.series)

    def t1w_for(self, group: InputGroup) -> InputGroup | None:
        """Return the T1w from which a series takes its mask: that of its session, or the first of the subject."""
        session = dict(group.entities).get("ses")
        same_session = [t1w for t1w in self.t1w if dict(t1w.entities).get("ses") == session]
        return next(iter(same_session or self.t1w), None)

    def clashing(self, item: SeriesPlan, model_name: str) -> frozenset[str]:
        """Return the BIDS suffixes that a model of this series shares with another model of the subject.

        Their names must hold the model: T1 by inversion recovery and by variable flip angles are different maps.
        """
        from qmri_bidsapp.registry import get_model

        def suffixes(name: str) -> set[str]:
            model = get_model(name)
            return {p.bids_suffix for p in (*model.parameters, *model.derived) if p.bids_suffix}

        others = [
            suffixes(name)
            for other in self.series
            if other.group.entities == item.group.entities
            for name in {name for name, _ in other.fits}
            if (other.group, name) != (item.group, model_name)
        ]
        return frozenset(suffixes(model_name) & set().union(*others))

    def describe(self) -> list[str]:
        """Return lines that list the series found and the work planned for them."""
        lines = [f"sub-{self.subject}"]
        for group in self.t1w:
            score = ", motion score" if self.motion_weights else ""
            bias = "" if "bias-field" in self.skip else "bias correction, "
            lines.append(f"  {group.name}: {bias}brain mask, tissues{score}")
            lines.extend(f"    note: {note}" for note in skip_notes(self.skip))
        for item in self.series:
            t1w = self.t1w_for(item.group)
            mask = f"mask and tissues from {t1w.name}" if t1w else "mask from the series"
            fits = ", ".join(
                f"{model} by {estimator}{' with 0 to 3 bundles' * ((model, estimator) in item.bundle_fits)}"
                for model, estimator in item.fits
            )
            todo = f"{mask}; {fits}" if fits else "left out, no chosen model applies"
            lines.append(f"  {item.group.name}: {_protocol(item.group)}; {_covariates(item.group)}{todo}")
            lines.extend(f"    note: {note}" for note in item.notes)
        lines.extend(f"  error: {error}" for error in self.errors)
        lines.extend(f"  {problem.severity}: {problem.message}" for problem in self.inputs.problems)
        return lines


def plan(config: Config, subjects: tuple[SubjectInputs, ...]) -> tuple[SubjectPlan, ...]:
    """Choose models and estimators for every series of every subject.

    Raises
    ------
    UsageError
        If a model or estimator is not known, or weights of the motion score cannot be used.
    """
    motion_weights = find_motion_weights(config)
    return tuple(replace(_plan_subject(config, subject), motion_weights=motion_weights) for subject in subjects)


def _plan_subject(config: Config, inputs: SubjectInputs) -> SubjectPlan:
    from qmri_bidsapp.fitting.choice import named_models

    planned = [_plan_series(config, group, group.acquisition) for group in inputs.groups if group.acquisition]
    fitted = {(item.group.kind, name) for item, _ in planned for name, _ in item.fits}
    alone = {name for _, name in fitted}
    advice = advice_to_join(inputs.groups, [name for name in named_models(config.models) if name not in alone])
    series = []
    errors: list[str] = []
    t1w = tuple(group for group in inputs.groups if group.acquisition is None)
    for item, refused in planned:
        hint = [advice[item.group.name]] if item.group.name in advice else []
        # A model that was asked for is fitted if one series of the suffix determines it; others, such as b = 0 with
        # reversed phase encoding, need not.
        others = [cause for model, cause in refused if (item.group.kind, model) in fitted]
        own = [cause for model, cause in refused if (item.group.kind, model) not in fitted]
        errors += [" ".join([f"{item.group.name}: {cause}", *hint]) for cause in own]
        if item.fits or not own:
            skip = skipped_of(item.group, config.skip, has_t1w=bool(t1w)) if item.fits else ()
            notes = (*skip_notes(skip), *item.notes, *others, *(hint if not own else ()))
            series.append(replace(item, notes=notes, skip=skip, denoise=config.denoise))
    skip = skipped_of(t1w[0], config.skip, has_t1w=True) if t1w else ()
    return SubjectPlan(inputs, t1w, tuple(series), tuple(errors), skip=skip)


def _plan_series(
    config: Config, group: InputGroup, acquisition: Acquisition
) -> tuple[SeriesPlan, list[tuple[str | None, str]]]:
    """Return what will be fitted to a series, and why models that were named cannot be; these do not stop others.

    Each reason comes with the model that the protocol does not determine, or with None where weights cannot be used.
    """
    from qmri_bidsapp.fitting.choice import AUTO, choose
    from qmri_bidsapp.registry import get_model

    fits: list[tuple[str, str]] = []
    notes: list[str] = []
    refused: list[tuple[str | None, str]] = []
    for models in [config.models] if AUTO in config.models else [(name,) for name in config.models]:
        try:
            pairs, reasons = choose(group.kind, acquisition, models=models, estimators=config.estimators)
        except ProtocolError as error:
            refused.append((models[0], str(error)))
            continue
        kept, causes = _with_weights(config, acquisition, pairs)
        refused += [(None, cause) for cause in causes]
        fits += _with_classical(config, group, acquisition, kept)
        notes += reasons
    found = SeriesPlan(group, tuple(fits))
    names = list(dict(fits))
    if fits and group.epi is not None:
        notes += group.epi.notes
    if not group.covariates:
        notes += [f"{name}: {NO_FIELD}." for name in names if get_model(name).covariates]
    notes += [note for name in names if (note := get_model(name).caution(acquisition))]
    notes += [f"{name}: no standard deviations: {NO_RESIDUALS}." for name in names if not found.has_residuals(name)]
    bundle_fits, reasons = _bundle_fits(config, acquisition, fits)
    found = SeriesPlan(group, tuple(fits), (*notes, *reasons), bundle_fits)
    return found if config.no_certificate else replace(found, notes=(*found.notes, *_uncertified(found))), refused


def _uncertified(item: SeriesPlan) -> list[str]:
    """Return notes on the fits that get no certificate."""
    objections = [(model, item.objection_to_certificate(model, estimator)) for model, estimator in item.fits]
    return [f"{model}: no certificate: {objection}." for model, objection in dict.fromkeys(objections) if objection]


def _with_weights(
    config: Config, acquisition: Acquisition, pairs: tuple[tuple[str, str], ...]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the fits whose weights, if not trained in the run, are whole and for this protocol; and why not others.

    Raises
    ------
    UsageError
        If an estimator has no weights and is not trained during the run.
    """
    from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
    from qmri_bidsapp.registry import get_estimator, get_model

    kept, refused = [], []
    for name, estimator in pairs:
        model, kind = get_model(name), get_estimator(estimator)
        if issubclass(kind, SpatialNetwork) or (config.weights is not None and is_learned(estimator)):
            trained = cast("type[TrainedEstimator]", kind)(model, weights=config.weights)
            try:
                trained.fit(model.adapt(acquisition)[0])
            except WeightsError as error:
                refused.append(f"{name} cannot be fitted by {estimator}: {error}")
                continue
        kept.append((name, estimator))
    return kept, refused


def _with_classical(
    config: Config, group: InputGroup, acquisition: Acquisition, pairs: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Add, where learned estimators are trained on fits, a fit of the model without weights, if there is none.

    It shows what the training distribution does, and a repeated run finds in it what this one was trained on.
    """
    from qmri_bidsapp.estimators.trained import TrainedEstimator
    from qmri_bidsapp.fitting.choice import AUTO, choose
    from qmri_bidsapp.registry import get_estimator

    if config.prior == "uniform":
        return pairs
    added: list[tuple[str, str]] = []
    for name in dict(pairs):
        own = [estimator for model, estimator in pairs if model == name]
        if any(map(is_learned, own)) and all(issubclass(get_estimator(key), TrainedEstimator) for key in own):
            added += choose(group.kind, acquisition, models=(name,), estimators=(AUTO,))[0]
    return [*pairs, *added]


def is_learned(estimator: str) -> bool:
    """Return whether an estimator has weights that are trained for a protocol."""
    from qmri_bidsapp.estimators.learned.base import LearnedEstimator
    from qmri_bidsapp.registry import get_estimator

    return issubclass(get_estimator(estimator), LearnedEstimator)


def _bundle_fits(
    config: Config, acquisition: Acquisition, fits: list[tuple[str, str]]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return the fits with as many bundles as fibre directions, and why others of oriented models have one."""
    from qmri_bidsapp.estimators.likelihood.least_squares import NonLinearLeastSquares
    from qmri_bidsapp.models.compose import MAX_BUNDLES, Composition
    from qmri_bidsapp.preprocess.fibre_directions import refusal
    from qmri_bidsapp.registry import get_estimator, get_model

    oriented = [(pair, model) for pair in fits if isinstance(model := get_model(pair[0]), Composition)]
    if config.n_fibres == "1" or not oriented:
        return (), ()
    reason = refusal(acquisition)  # type: ignore[arg-type]
    if reason is not None:
        return (), (reason,)
    chosen, notes = [], []
    for (name, estimator), model in oriented:
        try:
            model.with_bundles(MAX_BUNDLES)().check(acquisition)
        except ProtocolError as error:
            notes.append(f"{name}: one bundle per voxel. {error}")
            continue
        if issubclass(get_estimator(estimator), NonLinearLeastSquares):
            chosen.append((name, estimator))
        else:
            notes.append(f"{name}: one bundle per voxel: {estimator} takes no fibre directions.")
    return tuple(chosen), tuple(notes)


def weights_for(config: Config, model: SignalModel, estimator: type[Estimator]) -> Path | None:
    """Return the weights that the run gives to an estimator, if any: those asked for, or that come with the program."""
    from qmri_bidsapp.estimators.spatial.base import SpatialNetwork
    from qmri_bidsapp.estimators.trained import TrainedEstimator

    if not issubclass(estimator, TrainedEstimator):
        return None
    if config.weights is None and issubclass(estimator, SpatialNetwork):
        return estimator.shipped(model)
    return config.weights


def _covariates(group: InputGroup) -> str:
    """Name the maps that a series is fitted with."""
    return "".join(f"{item.name.upper()} from {Path(item.file).name}; " for item in group.covariates)


def _protocol(group: InputGroup) -> str:
    """Return the protocol in a few words, with the images that restore the polarity."""
    assert group.acquisition is not None
    if group.complement is None:
        return group.acquisition.summary()
    parts = "part-real and part-imag" if group.complement.part == "imag" else "part-phase"
    return f"{group.acquisition.summary()}, polarity from {parts}"
