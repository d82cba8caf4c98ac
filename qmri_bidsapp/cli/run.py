"""``qmri-bids``: the BIDS App."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp import __version__
from qmri_bidsapp.cli.parser import parse
from qmri_bidsapp.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PARTICIPANT_FAILED,
    InvalidBIDSError,
    OutputError,
    QmriError,
    UsageError,
)

if TYPE_CHECKING:
    from qmri_bidsapp.bids.dataset import Issue
    from qmri_bidsapp.bids.queries import SubjectInputs
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.base import SubjectPlan
    from qmri_bidsapp.workflows.execution import RunResult

LOGGER = logging.getLogger("qmri_bidsapp")
#: Other errors of the validator are listed by kind; this many kinds are shown.
MAX_LISTED = 10


def exit_code(error: BaseException | None, n_failed: int = 0) -> int:
    """Return what the program ends with: the one place where this is decided."""
    if isinstance(error, QmriError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if error is not None:
        return EXIT_PARTICIPANT_FAILED
    return EXIT_PARTICIPANT_FAILED if n_failed else EXIT_OK


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code; the cause of a failure is said in one line."""
    try:
        config = parse(argv)
        _prepare_environment(config)
        level = _run_participants if config.analysis_level == "participant" else _run_group
        return level(config)
    except KeyboardInterrupt as error:
        print("\nqmri-bids: interrupted; finished steps are kept in the work folder.", file=sys.stderr)
        return exit_code(error)
    except QmriError as error:
        print(f"qmri-bids: error: {error}", file=sys.stderr)
        return exit_code(error)
    except Exception as error:
        LOGGER.debug("%s", traceback.format_exc())
        where = "".join(f"; details in {h.baseFilename}" for h in LOGGER.handlers if isinstance(h, logging.FileHandler))
        print(f"qmri-bids: unexpected error: {type(error).__name__}: {error}{where}", file=sys.stderr)
        if not where:
            traceback.print_exc()
        return exit_code(error)
    finally:
        for handler in list(LOGGER.handlers):
            handler.close()
            LOGGER.removeHandler(handler)


def _prepare_environment(config: Config) -> None:
    """Make the folders and point every library's cache and threads to what was chosen; HOME may not be writable."""
    from qmri_bidsapp.bids.derivatives import check_output_dir

    check_output_dir(config.derivatives_dir, config.bids_dir)
    caches = config.work_dir / "caches"
    try:
        for name in ("matplotlib", "dipy", "torch", "templateflow", "nilearn", "xdg"):
            (caches / name).mkdir(parents=True, exist_ok=True)
        config.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The work folder {config.work_dir} cannot be written ({error.strerror or error})."
        ) from error
    os.environ.update(
        MPLCONFIGDIR=str(caches / "matplotlib"),
        MPLBACKEND="Agg",
        DIPY_HOME=str(caches / "dipy"),
        TORCH_HOME=str(caches / "torch"),
        TEMPLATEFLOW_HOME=str(caches / "templateflow"),
        TEMPLATEFLOW_AUTOUPDATE="0",
        NILEARN_DATA=str(caches / "nilearn"),
        XDG_CACHE_HOME=str(caches / "xdg"),
        NIPYPE_NO_ET="1",
        NO_ET="1",
        OMP_NUM_THREADS=str(config.omp_nthreads),
        OPENBLAS_NUM_THREADS=str(config.omp_nthreads),
        MKL_NUM_THREADS=str(config.omp_nthreads),
        ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=str(config.omp_nthreads),
    )
    LOGGER.setLevel(logging.DEBUG)
    file_handler = logging.FileHandler(config.log_dir / f"{config.run_id}.log", encoding="utf-8")
    file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(logging.DEBUG if config.verbose else logging.INFO)
    LOGGER.handlers = [file_handler, console]
    LOGGER.propagate = False
    (config.log_dir / f"{config.run_id}.toml").write_text(config.to_toml())


def _run_participants(config: Config) -> int:
    """Do the participant level."""
    from qmri_bidsapp.reports.citation import write_citation
    from qmri_bidsapp.workflows.base import describe_methods

    if config.boilerplate_only:
        write_citation(config.derivatives_dir, describe_methods(config))
        LOGGER.info("Methods text: %s", config.log_dir / "CITATION.md")
        return exit_code(None)
    if config.reports_only:
        return _rebuild_reports(config)
    LOGGER.info("qmri-bids %s: %s -> %s", __version__, config.bids_dir, config.derivatives_dir)
    plans = _find_and_plan(config)
    write_citation(config.derivatives_dir, describe_methods(config))
    result = _execute(config, plans)
    failed = {plan.subject for plan in plans if plan.inputs.has_errors or plan.errors} | set(result.failed)
    _build_reports(config, [plan.subject for plan in plans], failed)
    _print_summary(config, plans, result, failed)
    return exit_code(None, len(failed))


def _find_and_plan(config: Config) -> tuple[SubjectPlan, ...]:
    """Index, validate, choose what to do, and say it."""
    from qmri_bidsapp.bids.dataset import check_description, open_layout
    from qmri_bidsapp.bids.derivatives import write_dataset_files
    from qmri_bidsapp.bids.queries import find_inputs
    from qmri_bidsapp.registry import check_choice, load_estimators
    from qmri_bidsapp.workflows.base import plan

    check_choice(config.models, config.estimators)
    LOGGER.debug("Estimators run on %s", config.torch_device)
    description = check_description(config.bids_dir)
    layout = open_layout(
        config.bids_dir, participant_labels=config.participant_label, database_dir=config.bids_database_dir
    )
    subjects = find_inputs(
        layout,
        participant_labels=config.participant_label,
        session_labels=config.session_label,
        run_labels=config.run_label,
        filters=_read_filters(config.bids_filter_file),
    )
    if not config.skip_bids_validation:
        _validate(config, subjects)
    plans = plan(config, subjects)
    LOGGER.info("\nWhat was found, and what will be done:")
    for item in plans:
        LOGGER.info("%s", "\n".join(item.describe()))
    meanings = {}
    for name, estimator in load_estimators().items():
        meanings[name] = f"Estimate: {estimator.title}"
        meanings[f"{name}std"] = f"Standard deviation of the estimate ({estimator.std_kind})"
    write_dataset_files(
        config.derivatives_dir,
        config.bids_dir,
        version=__version__,
        source=description,
        descriptions=meanings,
    )
    return plans


def _read_filters(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        filters = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The filter file {path} is not valid JSON: {error}.") from error
    if not isinstance(filters, dict) or not all(isinstance(value, dict) for value in filters.values()):
        raise UsageError(f"The filter file {path} must map kinds (t1w, irt1, ...) to pybids queries.")
    return filters


def _validate(config: Config, subjects: tuple[SubjectInputs, ...]) -> None:
    """Run the validator; errors on series that will be used end the run, others are listed by kind.

    Defects that were already found in a series are reported with its subject, which fails alone.
    """
    from collections import Counter

    from qmri_bidsapp.bids.dataset import blocking, validate

    issues = validate(config.bids_dir)
    fatal = blocking(issues, subjects, config.bids_dir)
    if fatal:
        raise InvalidBIDSError(
            f"The BIDS validator finds {len(fatal)} errors in files that would be used, first: {_issue_text(fatal[0])}; "
            "correct them, leave the series out with --bids-filter-file, or give --skip-bids-validation."
        )
    kinds = Counter((issue.severity, issue.code) for issue in issues)
    errors = [(code, count) for (severity, code), count in sorted(kinds.items()) if severity == "error"]
    n_warnings = sum(count for (severity, _), count in kinds.items() if severity == "warning")
    text = "; ".join(f"{code} ({count} files)" for code, count in errors[:MAX_LISTED])
    LOGGER.info("BIDS validation: %s; %d warnings.", text or "no errors", n_warnings)


def _issue_text(issue: Issue) -> str:
    return f"{issue.code} at {issue.location}" + (f" ({issue.message})" if issue.message else "")


def _execute(config: Config, plans: tuple[SubjectPlan, ...]) -> RunResult:
    from qmri_bidsapp.cli.progress import Progress
    from qmri_bidsapp.workflows.execution import count_steps, run

    LOGGER.info("")
    return run(config, plans, Progress(count_steps(config, plans)))


def _build_reports(config: Config, subjects: list[str], failed: set[str]) -> None:
    """Make the report of every subject; a report that cannot be made counts its subject as failed."""
    from qmri_bidsapp.reports.assembler import build_subject_report

    for subject in subjects:
        try:
            build_subject_report(config.derivatives_dir, subject, config.log_dir / f"sub-{subject}" / config.run_id)
        except Exception as error:
            LOGGER.debug("%s", traceback.format_exc())
            LOGGER.error("sub-%s: the report could not be made (%s: %s).", subject, type(error).__name__, error)
            failed.add(subject)


def _rebuild_reports(config: Config) -> int:
    from qmri_bidsapp.errors import NothingMatchedError

    records = sorted(config.log_dir.glob("sub-*.json"))
    subjects = [path.stem[4:] for path in records]
    if config.participant_label:
        subjects = [label for label in subjects if label in config.participant_label]
    if not subjects:
        raise NothingMatchedError(f"{config.log_dir} holds no record of these participants: run them first.")
    failed: set[str] = set()
    _build_reports(config, subjects, failed)
    for subject in subjects:
        LOGGER.info("%s", config.derivatives_dir / f"sub-{subject}.html")
    return exit_code(None, len(failed))


def _print_summary(config: Config, plans: tuple[SubjectPlan, ...], result: RunResult, failed: set[str]) -> None:
    """Say what was made, what failed and where to look."""
    LOGGER.info("\n%-16s %-8s %5s  %s", "participant", "outcome", "maps", "where to look")
    for item in plans:
        record = json.loads((config.log_dir / f"sub-{item.subject}.json").read_text())
        n_maps = sum(len(fit["maps"]) for fit in record["fits"])
        outcome = "FAILED" if item.subject in failed else "nothing" if item.is_empty else "done"
        LOGGER.info(
            "%-16s %-8s %5d  %s",
            f"sub-{item.subject}",
            outcome,
            n_maps,
            config.derivatives_dir / f"sub-{item.subject}.html",
        )
        for cause in [*item.errors, *(p.message for p in item.inputs.problems)]:
            LOGGER.info("    %s", cause)
        for crash in result.failed.get(item.subject, []):
            LOGGER.info("    %s", crash_cause(Path(crash)))
            LOGGER.info("    details: %s", crash)


def crash_cause(path: Path) -> str:
    """Return the last line of a crash file's traceback that says what went wrong."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    causes = [line for line in lines if ("Error" in line.split(":")[0] and ":" in line)]
    return causes[-1] if causes else (lines[-1] if lines else "no cause recorded")


def _run_group(config: Config) -> int:
    """Do the group level."""
    from qmri_bidsapp.group.aggregate import aggregate
    from qmri_bidsapp.group.report import write_group_report

    tables, warnings = aggregate(config.derivatives_dir, config.participant_label)
    for warning in warnings:
        LOGGER.warning("warning: %s", warning)
    report = write_group_report(config.derivatives_dir, tables, warnings)
    for table in tables:
        LOGGER.info("%s", config.derivatives_dir / table.file_name)
    LOGGER.info("Group report: %s", report)
    return exit_code(None, len(warnings))


if __name__ == "__main__":
    sys.exit(main())
