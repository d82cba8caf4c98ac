"""Configuration: to TOML and back, and what it refuses."""

from __future__ import annotations

import dataclasses
import pickle
import re
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmri_bidsapp.config import LAYOUTS, LEVELS, PER_CALL, Config, make_config, read_toml
from qmri_bidsapp.errors import InputMissingError, UsageError

CALL = {
    "bids_dir": "/raw",
    "output_dir": "/out",
    "analysis_level": "participant",
    "run_id": "r",
    "work_dir": "/w",
}
LABELS = st.lists(st.from_regex(r"[0-9a-zA-Z]{1,6}", fullmatch=True), max_size=3).map(tuple)
NAMES = st.lists(st.text("abcdefgh0123456789:_é\"\\'", min_size=1), min_size=1, max_size=3).map(tuple)
CONFIGS = st.builds(
    Config,
    bids_dir=st.just(Path("/raw")),
    output_dir=st.just(Path("/out")),
    analysis_level=st.sampled_from(LEVELS),
    run_id=st.just("20260101-000000_00000000"),
    work_dir=st.text("abc é\"'\\", min_size=1, max_size=8).map(lambda name: Path("/w") / f"x{name}x"),
    participant_label=LABELS,
    session_label=LABELS,
    run_label=st.lists(st.from_regex(r"[0-9]{1,3}", fullmatch=True), max_size=3).map(tuple),
    bids_filter_file=st.none(),
    skip_bids_validation=st.booleans(),
    bids_database_dir=st.sampled_from([None, Path("/database")]),
    models=NAMES,
    estimators=NAMES,
    no_certificate=st.booleans(),
    debias=st.just(False),
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
    nprocs=st.integers(1, 1000),
    omp_nthreads=st.integers(1, 1000),
    mem_gb=st.floats(0.01, 1e5),
    use_plugin=st.none(),
    clean_workdir=st.booleans(),
    stop_on_first_crash=st.booleans(),
    reports_only=st.booleans(),
    boilerplate_only=st.just(False),
    output_layout=st.sampled_from(LAYOUTS),
    verbose=st.integers(0, 3),
)


@given(config=CONFIGS)
def test_round_trip(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    per_call = {name: getattr(config, name) for name in PER_CALL}
    assert make_config({**read_toml(path), **per_call}) == config


def test_every_field_is_in_the_file(tmp_path):
    for name in ("filter.json", "plugin.yml"):
        (tmp_path / name).touch()
    files = {"bids_filter_file": "filter.json", "use_plugin": "plugin.yml", "bids_database_dir": "db", "weights": "."}
    files |= {"motion_weights": ".", "qc_head": "."}
    config = make_config({**CALL, **{name: str(tmp_path / file) for name, file in files.items()}})
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert set(read_toml(tmp_path / "config.toml")) | set(PER_CALL) == {f.name for f in dataclasses.fields(Config)}


def test_is_frozen_and_can_go_to_workers():
    config = make_config(CALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.nprocs = 2
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ['t1']", "unknown name 'model'; did you mean models?"),
        ("zzz = 1", "unknown name 'zzz'; known: analysis_level, "),
        ("models = [", "is not valid TOML"),
    ],
    ids=["close", "far", "syntax"],
)
def test_file_with_an_error(tmp_path, text, message):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_toml(tmp_path / "config.toml")


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(InputMissingError, match="cannot be read"):
        read_toml(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("participant_label", [1], "a list of strings"),
        ("participant_label", "01", "a list of strings"),
        ("nprocs", True, "a whole number"),
        ("nprocs", 2.0, "a whole number"),
        ("mem_gb", True, "a number"),
        ("mem_gb", "4", "a number"),
        ("work_dir", 3, "a path"),
        ("use_plugin", "", "a path"),
        ("skip_bids_validation", 1, "true or false"),
        ("device", 0, "a string"),
    ],
)
def test_wrong_type(name, value, expected):
    with pytest.raises(UsageError, match=re.escape(f"{name} must be {expected}, got {value!r}")):
        make_config({**CALL, name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": []}, "--models must name at least one"),
        ({"estimators": []}, "--estimators must name at least one"),
        ({"reports_only": True, "boilerplate_only": True}, "exclude each other"),
        ({"output_layout": "flat"}, "--output-layout must be bids or legacy, got 'flat'"),
        ({"session_label": ["ses-1"]}, "--session-label takes labels of letters, digits and +, got 'ses-1'"),
        ({"device": "cuda:x"}, "--device must be"),
        ({"debias": True, "no_certificate": True}, "--debias takes the expected bias from certificates"),
        ({"denoise": "median"}, "--denoise must be mppca or patch2self, got 'median'"),
        ({"denoise": "patch2self", "skip": ["denoise"]}, "--denoise patch2self has no effect with --skip denoise"),
        ({"n_fibres": "2"}, "--n-fibres must be 1 or auto, got '2'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused(values, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_config({**CALL, **values})


def test_whole_number_for_a_float():
    assert make_config({**CALL, "mem_gb": 4}).mem_gb == 4.0


def test_unknown_home(monkeypatch):
    expanduser = Path.expanduser

    def no_home(self):
        if str(self).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return expanduser(self)

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(UsageError, match="home folder in ~/w is not known"):
        make_config({**CALL, "work_dir": "~/w"})


def gpus(monkeypatch, number: int) -> None:
    import torch

    cuda = types.SimpleNamespace(is_available=lambda: number > 0, device_count=lambda: number)
    monkeypatch.setattr(torch, "cuda", cuda)


@pytest.mark.parametrize(
    ("device", "number", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_device(monkeypatch, device, number, expected):
    gpus(monkeypatch, number)
    assert make_config({**CALL, "device": device}).torch_device == expected


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_absent_device(monkeypatch, device, number):
    gpus(monkeypatch, number)
    with pytest.raises(UsageError, match=f"--device {device} was asked for, but .* is {number}"):
        _ = make_config({**CALL, "device": device}).torch_device
