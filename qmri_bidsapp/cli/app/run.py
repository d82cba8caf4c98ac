"""``qmri-bids``: the BIDS App."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmri_bidsapp import __version__
from qmri_bidsapp.cli.app.environment import close_log, prepare, terminable
from qmri_bidsapp.cli.app.parser import parse
from qmri_bidsapp.cli.exits import LOGGER, exit_code, say_error, say_unexpected
from qmri_bidsapp.errors import InvalidBIDSError, NothingMatchedError, QmriError, UsageError

if TYPE_CHECKING:
    from qmri_bidsapp.bids.dataset import Issue
    from qmri_bidsapp.bids.inputs import SubjectInputs
    from qmri_bidsapp.config import Config
    from qmri_bidsapp.workflows.base import SubjectPlan
    from qmri_bidsapp.workflows.execution import RunResult

#: Maximum number of kinds of validator errors that are listed.
MAX_LISTED = 10


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code. A failure prints its cause in one line."""
    try:
        with terminable():
            config = parse(argv)
            prepare(config)
            level = run_participants if config.analysis_level == "participant" else _run_group
            return level(config)
    except KeyboardInterrupt as error:
        # The cursor is behind ^C or behind the line of running steps.
        print(file=sys.stderr)
        say_error("qmri-bids", "interrupted; finished steps are kept in the work folder")
        return exit_code(error)
    except QmriError as error:
        say_error("qmri-bids", f"error: {error}")
        return exit_code(error)
    except Exception as error:
        say_unexpected("qmri-bids", error)
        return exit_code(error)
    finally:
        close_log()


def run_participants(config: Config) -> int:
    """Run the participant level and return the exit code; `prepare` was called for the output and work folders."""
    from qmri_bidsapp.cli.app.summary import print_summary, unfinished
    from qmri_bidsapp.reports.citation import write_citation
    from qmri_bidsapp.workflows.methods import bibliography, describe_methods

    if config.boilerplate_only:
        plans = _find_and_plan(config)
        write_citation(config.derivatives_dir, describe_methods(config, plans), bibliography(config, plans))
        LOGGER.info("Methods text: %s", config.log_dir / "CITATION.md")
        return exit_code(None)
    if config.reports_only:
        return _rebuild_reports(config)
    LOGGER.info("qmri-bids %s: %s -> %s", __version__, config.bids_dir, config.derivatives_dir)
    plans = _find_and_plan(config)
    write_citation(config.derivatives_dir, describe_methods(config, plans), bibliography(config, plans))
    result = _execute(config, plans)
    failed = {item.subject for item in plans if item.inputs.has_errors or item.errors or unfinished(config, item)}
    failed |= set(result.failed)
    crash_dirs = {item.subject: config.log_dir / f"sub-{item.subject}" / config.run_id for item in plans}
    failed |= _build_reports(config, crash_dirs)
    print_summary(config, plans, result, failed)
    return exit_code(None, len(failed))


def _find_and_plan(config: Config) -> tuple[SubjectPlan, ...]:
    """Find the series, plan the run, and print the plan."""
    from qmri_bidsapp.bids.dataset import check_description
    from qmri_bidsapp.fitting.choice import check_choice
    from qmri_bidsapp.workflows.base import plan
    from qmri_bidsapp.workflows.motion_score import why_no_score
    from qmri_bidsapp.workflows.priors import gather_samples

    check_choice(config.models, config.estimators)
    _check_plugin(config.use_plugin)
    LOGGER.debug("Estimators run on %s", config.torch_device)
    subjects = find_subjects(config)
    plans = plan(config, subjects)
    gather_samples(config, plans)
    LOGGER.info("\nFound series and planned steps:")
    for item in plans:
        LOGGER.info("%s", "\n".join(item.describe()))
    if any(item.t1w and item.motion_weights is None for item in plans):
        LOGGER.info("%s", why_no_score(config))
    _describe_output(config, check_description(config.bids_dir))
    return plans


def find_subjects(config: Config) -> tuple[SubjectInputs, ...]:
    """Index and validate the data set, and find the series of the chosen participants."""
    from qmri_bidsapp.bids.dataset import open_layout
    from qmri_bidsapp.bids.queries import find_inputs

    layout = open_layout(
        config.bids_dir, participant_labels=config.participant_label, database_dir=config.bids_database_dir
    )
    subjects = find_inputs(
        layout,
        participant_labels=config.participant_label,
        session_labels=config.session_label,
        run_labels=config.run_label,
        filters=_read_filters(config.bids_filter_file),
        skip=config.skip,
        ignore_fieldmaps="fieldmaps" in config.ignore,
    )
    if not config.skip_bids_validation:
        _validate(config, subjects)
    return subjects


def _describe_output(config: Config, source: dict[str, Any]) -> None:
    """Write the files that make the output folder a BIDS data set."""
    from qmri_bidsapp.bids.derivatives import write_dataset_files
    from qmri_bidsapp.workflows.outputs import desc_meanings

    write_dataset_files(
        config.derivatives_dir, config.bids_dir, version=__version__, source=source, descriptions=desc_meanings()
    )


def _check_plugin(path: Path | None) -> None:
    """Check a plugin file before the work begins."""
    import yaml

    if path is None:
        return
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The plugin file {path} is not valid YAML: {error}.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("plugin"), str):
        raise UsageError(f"The plugin file {path} must contain 'plugin: NAME', such as 'plugin: SLURM'.")
    if not isinstance(settings.get("plugin_args", {}), dict):
        raise UsageError(f"The plugin file {path}: plugin_args must map names to values.")


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
    """Run the validator. Errors in series that will be used end the run; others are listed by kind.

    A defect already found in a series is reported with its subject, and only that subject fails.
    """
    from collections import Counter

    from qmri_bidsapp.bids.dataset import blocking, validate

    issues = validate(config.bids_dir)
    fatal = blocking(issues, subjects, config.bids_dir)
    if fatal:
        raise InvalidBIDSError(
            f"The BIDS validator finds {len(fatal)} errors in files that would be used, first: "
            f"{_issue_text(fatal[0])}; correct them, exclude the series with --bids-filter-file, or use "
            "--skip-bids-validation."
        )
    kinds = Counter((issue.severity, issue.code) for issue in issues)
    for (severity, code), count in sorted(kinds.items()):
        LOGGER.debug("BIDS validation, %s: %s, %d files", severity, code, count)
    errors = [f"{code} ({count} files)" for (severity, code), count in sorted(kinds.items()) if severity == "error"]
    more = f"; {len(errors) - MAX_LISTED} more kinds in the log" if len(errors) > MAX_LISTED else ""
    n_warnings = sum(count for (severity, _), count in kinds.items() if severity == "warning")
    text = "; ".join(errors[:MAX_LISTED]) + more
    LOGGER.info("BIDS validation: %s; %d warnings.", text or "no errors", n_warnings)


def _issue_text(issue: Issue) -> str:
    return f"{issue.code} at {issue.location}" + (f" ({issue.message})" if issue.message else "")


def _execute(config: Config, plans: tuple[SubjectPlan, ...]) -> RunResult:
    from qmri_bidsapp.cli.app.progress import Progress
    from qmri_bidsapp.workflows.execution import run

    LOGGER.info("")
    return run(config, plans, Progress)


def _build_reports(config: Config, crash_dirs: Mapping[str, Path | None]) -> set[str]:
    """Write the report of every subject, and return the subjects for which this failed."""
    from qmri_bidsapp.reports.assembler import build_subject_report

    failed = set()
    for number, (subject, crash_dir) in enumerate(crash_dirs.items(), start=1):
        LOGGER.info("sub-%s: report %d of %d", subject, number, len(crash_dirs))
        try:
            build_subject_report(config.derivatives_dir, subject, crash_dir)
        except Exception as error:
            LOGGER.debug("%s", traceback.format_exc())
            LOGGER.error("sub-%s: the report could not be written (%s: %s).", subject, type(error).__name__, error)
            failed.add(subject)
    return failed


def _rebuild_reports(config: Config) -> int:
    """Rebuild the reports from the last run of each subject."""
    subjects = _recorded_subjects(config)
    failed = _build_reports(config, {subject: _last_crash_dir(config, subject) for subject in subjects})
    for subject in subjects:
        if subject not in failed:
            LOGGER.info("%s", config.derivatives_dir / f"sub-{subject}.html")
    return exit_code(None, len(failed))


def _recorded_subjects(config: Config) -> list[str]:
    """Return the requested subjects that have a record of the participant level.

    Raises
    ------
    NothingMatchedError
        If there is none, or if a requested subject has no record.
    """
    from qmri_bidsapp.bids.record_files import record_files

    recorded = [path.stem.removeprefix("sub-") for path in record_files(config.derivatives_dir)]
    absent = [label for label in config.participant_label if label not in recorded]
    if absent or not recorded:
        names = ", ".join(f"sub-{label}" for label in absent) or "any participant"
        raise NothingMatchedError(f"{config.log_dir} has no record of {names}: run the participant level first.")
    return [label for label in recorded if not config.participant_label or label in config.participant_label]


def _last_crash_dir(config: Config, subject: str) -> Path | None:
    """Return the folder of crash files of a subject's last run. Names of runs sort by time."""
    logs = sorted((config.log_dir / f"sub-{subject}").glob("*.log"))
    return logs[-1].with_suffix("") if logs else None


def _run_group(config: Config) -> int:
    """Run the group level."""
    from qmri_bidsapp.group.aggregate import aggregate
    from qmri_bidsapp.group.motion_correction import correct_group
    from qmri_bidsapp.group.report import write_group_report

    _recorded_subjects(config)
    tables, warnings = aggregate(config.derivatives_dir, config.participant_label)
    motion, no_motion, unread = correct_group(config.derivatives_dir, config.bids_dir, tables)
    warnings = [*warnings, *unread]
    for warning in warnings:
        LOGGER.warning("warning: %s", warning)
    report = write_group_report(config.derivatives_dir, tables, warnings, motion, no_motion, config.participant_label)
    for table in tables:
        LOGGER.info("%s", config.derivatives_dir / table.file_name)
    LOGGER.info("Motion: %s", no_motion if motion is None else motion.summary)
    LOGGER.info("Group report: %s", report)
    return exit_code(None, len(warnings))


if __name__ == "__main__":
    sys.exit(main())
