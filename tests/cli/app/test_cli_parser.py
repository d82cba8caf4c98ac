"""Command line: every option arrives, nothing is guessed, and the help needs no heavy import."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.cli.app.parser import build_parser, parse
from qmri_bidsapp.errors import InputMissingError, UnknownLevelError, UsageError

HEAVY = ("ants", "bids", "dipy", "matplotlib", "nibabel", "nipype", "nireports", "numpy", "pandas", "torch")
OPTIONS = {
    "--ignore",
    "--participant-label", "--session-label", "--run-label", "--bids-filter-file", "--skip-bids-validation",
    "--bids-database-dir", "--skip", "--denoise", "--models", "--estimators", "--n-fibres", "--no-certificate",
    "--debias",
    "--prior", "--weights", "--device", "--nprocs", "--omp-nthreads",
    "--mem-gb", "--use-plugin", "--work-dir", "--clean-workdir", "--stop-on-first-crash", "--reports-only",
    "--motion-weights", "--motion-weights-sha256", "--no-motion-score", "--qc-head",
    "--boilerplate-only", "--config-file", "--output-layout", "--verbose", "--version", "--help",
}  # fmt: skip


def line(bids_dir, *options: str) -> list[str]:
    return [str(bids_dir), "out", "participant", *options]


def test_options_are_those_promised():
    found = {action.option_strings[-1] for action in build_parser()._actions if action.option_strings}
    assert found == OPTIONS


def test_help_fits_100_columns_and_explains_everything(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 100
    assert all(action.help for action in build_parser()._actions)
    for title in ("What and where", "Data", "Methods", "Resources", "Running"):
        assert f"{title}:" in text


@pytest.mark.parametrize("module", ["app.run", "tools"])
def test_help_imports_nothing_heavy(module):
    code = (
        "import json, sys\n"
        f"from qmri_bidsapp.cli.{module} import main\n"
        "try:\n    main(['--help'])\n"
        f"finally:\n    print(json.dumps(sorted(set({HEAVY!r}) & set(sys.modules))), file=sys.stderr)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage:" in finished.stdout
    assert json.loads(finished.stderr) == []


def test_run_is_a_program():
    command = [sys.executable, "-m", "qmri_bidsapp.cli.app.run", "--version"]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"qmri-bids \d+\.\d+\.\d+\S*\n", finished.stdout)


def test_defaults(bids_dir, tmp_path):
    config = parse(line(bids_dir))
    assert config.bids_dir == bids_dir
    assert config.output_dir == config.derivatives_dir == tmp_path / "out"
    assert config.work_dir == tmp_path / "work"
    assert config.participant_label == ()
    assert config.models == config.estimators == ("auto",)
    assert (config.device, config.output_layout, config.verbose) == ("auto", "bids", 0)
    assert config.nprocs >= 1
    assert config.mem_gb > 0
    assert re.fullmatch(r"\d{8}-\d{6}_[0-9a-f]{8}", config.run_id)


@pytest.mark.parametrize(
    "words",
    [["sub-01", "02"], ["01,02"], ["01,", "sub-02"], ["01", "02", "sub-01"]],
    ids=["spaces", "comma", "comma and space", "one twice"],
)
def test_labels_with_and_without_prefix(bids_dir, words):
    assert parse(line(bids_dir, "--participant-label", *words)).participant_label == ("01", "02")


def test_sessions_and_runs(bids_dir):
    config = parse(line(bids_dir, "--session-label", "ses-pre", "--run-label", "run-01", "2"))
    assert config.session_label == ("pre",)
    assert config.run_label == ("01", "2")


def test_models_and_estimators(bids_dir):
    config = parse(line(bids_dir, "--models", "t1,smt", "--estimators", "nlls", "tensor:wls"))
    assert config.models == ("t1", "smt")
    assert config.estimators == ("nlls", "tensor:wls")


def test_steps_to_skip(bids_dir):
    assert parse(line(bids_dir)).skip == ()
    assert parse(line(bids_dir, "--skip", "denoise,unring", "align")).skip == ("denoise", "unring", "align")


def test_legacy_layout(bids_dir, tmp_path):
    config = parse(line(bids_dir, "--output-layout", "legacy"))
    assert config.derivatives_dir == tmp_path / "out" / "qmri_bidsapp"
    assert config.log_dir == config.derivatives_dir / "logs"


@pytest.mark.parametrize(
    ("participants", "expected"), [(["01"], 8), (["01", "02"], 4), ([], 2), ([f"{i}x" for i in range(9)], 1)]
)
def test_threads_are_shared_by_participants(bids_dir, participants, expected):
    for label in ("01", "02", "03", "04"):
        (bids_dir / f"sub-{label}").mkdir()
    chosen = ["--participant-label", *participants] if participants else []
    assert parse(line(bids_dir, "--nprocs", "8", *chosen)).omp_nthreads == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fish"], "Unrecognized arguments: --fish"),
        (["--participant", "01"], "Unrecognized arguments"),
        (["--participant-label", ","], "--participant-label needs at least one value"),
        (["--participant-label", "a_b"], "takes labels of letters, digits and +, got 'a_b'"),
        (["--models", ","], "--models needs at least one value"),
        (["--nprocs", "many"], "invalid int value: 'many'"),
        (["--nprocs", "0"], "--nprocs must be at least 1, got 0"),
        (["--omp-nthreads", "-1"], "--omp-nthreads must be at least 1, got -1"),
        (["--mem-gb", "0"], "--mem-gb must be positive, got 0"),
        (["--mem-gb", "nan"], "--mem-gb must be positive, got nan"),
        (["--mem-gb", "inf"], "--mem-gb must be positive, got inf"),
        (["--device", "gpu"], "--device must be auto, cpu, cuda or cuda:n, got 'gpu'"),
        (
            ["--skip", "denoise", "denoising"],
            "--skip knows no step denoising; steps: join, distortion, denoise, noise-floor, unring, align, drift, "
            "lost-slices, bias-field, register.",
        ),
        (["--output-layout", "flat"], "invalid choice: 'flat'"),
        (["--work-dir", ""], "work_dir must be a path, got ''"),
        (["--reports-only", "--boilerplate-only"], "not allowed with argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_error(bids_dir, options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(line(bids_dir, *options))


def test_missing_arguments():
    with pytest.raises(UsageError, match="required: bids_dir, output_dir"):
        parse([])


def test_unknown_level(bids_dir):
    with pytest.raises(UnknownLevelError, match="participant or group, got 'session'"):
        parse([str(bids_dir), "out", "session"])


@pytest.mark.parametrize("option", ["--bids-filter-file", "--use-plugin"])
def test_file_that_does_not_exist(bids_dir, option):
    with pytest.raises(InputMissingError, match=f"{option}: the file .*absent.* does not exist"):
        parse(line(bids_dir, option, "absent"))


@pytest.mark.parametrize("inside", ["", "work"])
def test_work_folder_in_the_input(bids_dir, inside):
    with pytest.raises(UsageError, match="lies in the input folder; name another with --work-dir"):
        parse(line(bids_dir, "-w", str(bids_dir / inside)))


def test_work_folder_in_the_input_behind_a_link(bids_dir, tmp_path):
    (tmp_path / "link").symlink_to(bids_dir)
    with pytest.raises(UsageError, match="lies in the input folder"):
        parse(line(bids_dir, "-w", "link/work"))


def test_work_folder_is_the_output(bids_dir):
    with pytest.raises(UsageError, match="is the output folder too"):
        parse(line(bids_dir, "-w", "out"))


def test_options_override_the_file(bids_dir, tmp_path):
    first = parse(line(bids_dir, "--models", "t1", "--nprocs", "3", "--mem-gb", "7", "--skip-bids-validation"))
    (tmp_path / "run.toml").write_text(first.to_toml())
    second = parse([str(bids_dir), "out2", "group", "--config-file", "run.toml", "--nprocs", "5"])
    assert second.nprocs == 5
    assert second.models == ("t1",)
    assert second.mem_gb == 7
    assert second.skip_bids_validation
    assert second.analysis_level == "group"
    assert second.output_dir == tmp_path / "out2"
    assert second.run_id != first.run_id


def test_file_alone_gives_the_same_run(bids_dir, tmp_path):
    first = parse(line(bids_dir, "--participant-label", "01", "--estimators", "nlls", "-v", "-w", "elsewhere"))
    (tmp_path / "run.toml").write_text(first.to_toml())
    second = parse(line(bids_dir, "--config-file", "run.toml"))
    assert {**vars(second), "run_id": ""} == {**vars(first), "run_id": ""}


def test_relative_paths_and_dots_become_absolute(bids_dir, tmp_path):
    config = parse([str(bids_dir / ".." / "raw"), "./a/../out", "participant"])
    assert config.bids_dir == bids_dir
    assert config.output_dir == tmp_path / "out"


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a parser and of its commands."""
    found = {option for action in parser._actions for option in action.option_strings}
    commands = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(_options(choice) for action in commands for choice in action.choices.values()))


def test_every_option_in_the_documentation_exists():
    repository = Path(__file__).resolve().parents[3]
    known = _options(build_parser()) | _options(tools.build_parser())
    # Options of docker, apptainer, sbatch, pip and the benchmarks.
    foreign = {"--cohorts", "--head", "--only", "--rm", "--read-only", "--tmpfs", "--network", "--no-deps"}
    foreign |= {
        "--build-arg",
        "--tags",
        "--abbrev",
        "--cleanenv",
        "--array",
        "--cpus-per-task",
        "--mem",
        "--time",
        "--wrap",
        "--lesions",
    }
    for page in [repository / "README.md", *sorted((repository / "docs").rglob("*.md"))]:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text(encoding="utf-8")))
        assert used <= known | foreign, page.name
