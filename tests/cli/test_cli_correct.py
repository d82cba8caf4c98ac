"""``qmri correct``: any table of measures, and clear words on those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qmri_bidsapp.cli import tools

N = 30


def write(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


@pytest.fixture
def tables(tmp_path):
    """Write measures of 30 participants, one without score, and what goes with them; return their folder."""
    rng = np.random.default_rng(5)
    labels = [f"sub-{k:02d}" for k in range(N)]
    motion = rng.gamma(2.0, 0.4, N)
    values = {"hippocampus": 4 - 0.4 * motion + 0.1 * rng.standard_normal(N), "cortex": 2 + rng.standard_normal(N)}
    diagnosis = np.where(np.arange(N) % 2, "patient", "control")
    write(tmp_path / "measures.tsv", pd.DataFrame({"participant_id": labels, **values, "note": "x"}))
    bare = [label.removeprefix("sub-") for label in labels]
    write(tmp_path / "motion.tsv", pd.DataFrame({"participant_id": bare, "motion_score": motion, "fd": motion / 2})[1:])
    people = {"participant_id": labels, "Age": ["89+", "n/a", *rng.integers(20, 80, N - 2).astype(str)]}
    people |= {"sex": ["F", "M", "female"] * 10, "diagnosis": diagnosis}
    write(tmp_path / "participants.tsv", pd.DataFrame(people))
    return tmp_path


def correct(folder, *more, measures="measures.tsv", motion="motion.tsv"):
    words = ["correct", "--measures", folder / measures, "--motion", folder / motion, "--out", folder / "out", *more]
    return tools.main([str(word) for word in words])


def read(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", dtype={"participant_id": str})


def test_slopes_and_adjusted_values(tables, capsys):
    assert correct(tables, "--participants", tables / "participants.tsv") == 0
    output = capsys.readouterr().out
    assert "1 of 30 rows of measures have no motion score and are left out: 00." in output
    assert "note holds no numbers" in output
    assert "participants.tsv has no column site." in output
    slopes = read(tables / "out/motion_slopes.tsv").set_index("measure")
    row = slopes.loc["hippocampus"]
    assert row["slope_low"] < -0.4 < row["slope_high"] < 0
    assert (row["n"], row["degrees_of_freedom"], row["covariates"]) == (28, 24, "age, sex")
    assert "1 rows without a known age" in row["note"]
    adjusted = read(tables / "out/motion_adjusted.tsv")
    assert list(adjusted)[:4] == ["participant_id", "motion_score", "hippocampus", "hippocampus_adjusted"]
    assert np.isnan(adjusted["hippocampus_adjusted"][0])
    moved = adjusted["motion_score"] - adjusted["motion_score"].median()
    change = adjusted["hippocampus_adjusted"] - adjusted["hippocampus"]
    np.testing.assert_allclose(change, -row["slope"] * moved, atol=1e-4)
    for name, table in (("motion_slopes", slopes.reset_index()), ("motion_adjusted", adjusted)):
        assert list(json.loads((tables / f"out/{name}.json").read_text())) == list(table)
    page = (tables / "out/motion_report.html").read_text()
    assert page.count("<svg") == 3
    assert "n/a" not in page


def test_another_column_reference_and_covariates(tables):
    more = ["--participants", tables / "participants.tsv", "--covariates", "diagnosis"]
    assert correct(tables, "--motion-column", "fd", "--reference", "0", *more) == 0
    slopes = read(tables / "out/motion_slopes.tsv").set_index("measure")
    assert slopes.loc["hippocampus", "slope_low"] < -0.8 < slopes.loc["hippocampus", "slope_high"] < -0.4
    assert slopes.loc["hippocampus", "covariates"] == "diagnosis"
    adjusted = read(tables / "out/motion_adjusted.tsv")
    change = adjusted["hippocampus_adjusted"] - adjusted["hippocampus"]
    np.testing.assert_allclose(change, -slopes.loc["hippocampus", "slope"] * adjusted["motion_score"], atol=1e-4)


def test_participants_without_covariates_are_named(tables, capsys):
    people = read(tables / "participants.tsv").astype(str)
    write(tables / "participants.tsv", people[3:])
    assert correct(tables, "--participants", tables / "participants.tsv") == 0
    note = "3 participants are not in --participants: sub-00, sub-01, sub-02."
    assert note in capsys.readouterr().out
    assert note in (tables / "out/motion_report.html").read_text()


def test_covariates_that_tell_nothing_are_named(tables, capsys):
    spoil("participants.tsv", lambda t: t.assign(site=t["diagnosis"] + "s", sex="F"))(tables)
    more = ["--participants", tables / "participants.tsv"]
    assert correct(tables, *more) == 0
    assert "sex is constant and is left out of the covariates." in capsys.readouterr().out
    assert correct(tables, *more, "--covariates", "site", "diagnosis") == 0
    slopes = read(tables / "out/motion_slopes.tsv")
    assert set(slopes["covariates"]) == {"site"}
    assert set(slopes["note"]) == {"diagnosis is collinear with site and is left out"}
    assert "diagnosis is collinear with site" in (tables / "out/motion_report.html").read_text()


@pytest.mark.parametrize("word", ["inf", "-inf", "1e999"])
def test_infinite_covariates_are_missing(tables, capsys, word):
    spoil("participants.tsv", lambda t: t.assign(iq=[*map(str, range(N - 1)), word]))(tables)
    assert correct(tables, "--participants", tables / "participants.tsv", "--covariates", "iq") == 0
    assert f"iq '{word}' is not a finite number and counts as missing." in capsys.readouterr().out
    slopes = read(tables / "out/motion_slopes.tsv")
    assert set(slopes["covariates"]) == {"iq"}
    assert set(slopes["n"]) == {N - 2}


def test_sessions(tables):
    measures, motion = (read(tables / name) for name in ("measures.tsv", "motion.tsv"))
    both = [
        pd.concat([table.assign(session_id=label) for label in labels])
        for table, labels in ((measures, ("ses-1", "ses-2")), (motion, ("1", "2")))
    ]
    write(tables / "measures.tsv", both[0])
    write(tables / "motion.tsv", both[1])
    assert correct(tables) == 0
    slopes = read(tables / "out/motion_slopes.tsv")
    assert list(slopes["n"]) == [58, 58]
    assert list(slopes["n_participants"]) == [29, 29]
    assert list(read(tables / "out/motion_adjusted.tsv")["session_id"][::30]) == ["ses-1", "ses-2"]


def test_results_can_be_corrected_again(tables):
    assert correct(tables) == 0
    first = read(tables / "out/motion_slopes.tsv")
    assert correct(tables, measures="out/motion_adjusted.tsv") == 73
    (tables / "out/motion_adjusted.tsv").rename(tables / "again.tsv")
    assert correct(tables, measures="again.tsv") == 0
    # Tables of slopes hold six digits.
    pd.testing.assert_frame_equal(read(tables / "out/motion_slopes.tsv"), first, rtol=1e-5)


def test_blank_lines_are_skipped(tables):
    assert correct(tables) == 0
    first = (tables / "out/motion_adjusted.tsv").read_text()
    for name in ("measures.tsv", "motion.tsv"):
        lines = (tables / name).read_text().splitlines()
        (tables / name).write_text("\n".join(["", *lines[:3], "", " ", *lines[3:], "", ""]))
    assert correct(tables) == 0
    assert (tables / "out/motion_adjusted.tsv").read_text() == first


def test_measures_keep_their_digits(tables):
    """A brain volume in mm3 has more than six."""
    spoil("measures.tsv", lambda t: t.assign(brain=[f"{1234567.25 + 1000 * (k % 7):.2f}" for k in range(N)]))(tables)
    assert correct(tables) == 0
    words = [pd.read_csv(tables / name, sep="\t", dtype=str) for name in ("measures.tsv", "out/motion_adjusted.tsv")]
    for name in ("hippocampus", "brain"):
        assert list(words[1][name]) == list(words[0][name])
    slopes = read(tables / "out/motion_slopes.tsv").set_index("measure")
    adjusted = read(tables / "out/motion_adjusted.tsv")
    moved = adjusted["motion_score"] - read(tables / "motion.tsv")["motion_score"].median()
    expected = adjusted["brain"] - slopes.loc["brain", "slope"] * moved
    np.testing.assert_allclose(adjusted["brain_adjusted"], expected, atol=0.01)


@pytest.mark.parametrize("name", ["motion_slopes.tsv", "motion_adjusted.json", "motion_report.html"])
def test_an_output_that_is_a_folder_is_refused_before_anything_is_written(tables, name, capsys):
    (tables / "out" / name).mkdir(parents=True)
    assert correct(tables) == 73
    assert f"{name} is a folder" in capsys.readouterr().err
    assert [path.name for path in (tables / "out").iterdir()] == [name]


def test_nothing_is_written_if_the_figures_fail(tables, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no figure")

    monkeypatch.setattr("qmri_bidsapp.group.correction_figures.forest_figure", fail)
    assert correct(tables) != 0
    assert not (tables / "out").exists()


def spoil(name, change):
    """Return a function that changes a table of words."""

    def apply(folder):
        path = folder / name
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        write(path, change(table))

    return apply


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "more", "code", "cause"),
    [
        (lambda folder: (folder / "motion.tsv").unlink(), [], 66, "motion.tsv does not exist"),
        (text("motion.tsv", b""), [], 64, "motion.tsv cannot be read as a table"),
        (text("motion.tsv", b"\n \n\n"), [], 64, "motion.tsv cannot be read as a table"),
        (text("motion.tsv", b"\t\n\t\n"), [], 64, "motion.tsv cannot be read as a table"),
        (text("motion.tsv", b"\xff\xfe\x00\x01"), [], 64, "cannot be read as a table"),
        (text("measures.tsv", b"participant_id,a\nsub-01,1\n"), [], 64, "must be separated by tabs"),
        (text("measures.tsv", b"participant_id\ta\n"), [], 64, "measures.tsv has no rows"),
        (text("measures.tsv", b"participant_id\ta\nsub-01\t1\t2\n"), [], 64, "measures.tsv cannot be read"),
        (text("measures.tsv", b"participant_id\ta\ta\nsub-01\t1\t2\n"), [], 64, "several columns a"),
        (text("measures.tsv", b"participant_id\ta\n\t1\n"), [], 64, "no participant_id in row 2"),
        (text("measures.tsv", b"\n \nparticipant_id\ta\n\nsub-01\t1\n\t\nsub-02\tx\n"), [], 64, "got 'x' in row 7"),
        (text("measures.tsv", b"participant_id\ta\n\nsub-01\t1\n\n\t1\n"), [], 64, "no participant_id in row 5"),
        (spoil("measures.tsv", lambda t: t.rename(columns={"participant_id": "id"})), [], 64, "needs the column"),
        (spoil("measures.tsv", lambda t: t[["participant_id", "note"]]), [], 64, "no column of numbers"),
        (spoil("measures.tsv", lambda t: t.assign(cortex=["1,5", *t["cortex"][1:]])), [], 64, "got '1,5' in row 2"),
        (spoil("measures.tsv", lambda t: t.assign(cortex=["inf", *t["cortex"][1:]])), [], 64, "got 'inf' in row 2"),
        (spoil("measures.tsv", lambda t: pd.concat([t, t[:1]])), [], 64, "sub-00 comes more than once"),
        (spoil("measures.tsv", lambda t: t[:9]), [], 64, "8 participants for 2 coefficients; at least 10"),
        (spoil("measures.tsv", lambda t: t.assign(participant_id="x" + t["participant_id"])), [], 64, "in common"),
        (spoil("measures.tsv", lambda t: t.assign(session_id="1")), [], 0, ""),
        (spoil("measures.tsv", lambda t: pd.concat([t.assign(session_id=k) for k in "12"])), [], 64, "no session_id"),
        (spoil("motion.tsv", lambda t: t.assign(motion_score="2")), [], 64, "all scores in"),
        (spoil("motion.tsv", lambda t: t.assign(motion_score="n/a")), [], 64, "is empty"),
        (spoil("motion.tsv", lambda t: t.assign(motion_score="-1")), [], 64, "negative scores"),
        (spoil("motion.tsv", lambda t: t.assign(motion_score="much")), [], 64, "got 'much' in row 2"),
        (spoil("motion.tsv", lambda t: pd.concat([t, t])), [], 64, "motion.tsv must have one score"),
        (None, ["--motion-column", "rms"], 64, "no column rms, but participant_id, motion_score, fd"),
        (spoil("participants.tsv", lambda t: pd.concat([t, t])), ["--participants", "P"], 64, "sub-00 comes more than"),
        (spoil("participants.tsv", lambda t: t.assign(participant_id="p" + t["participant_id"])),
         ["--participants", "P"], 64, "--participants have no participant in common: sub-00 against sub-psub-00; use"),
        (None, ["--participants", "P", "--covariates", "iq"], 64, "participants.tsv has no column iq"),
        (spoil("participants.tsv", lambda t: t.assign(diagnosis="patient")),
         ["--participants", "P", "--covariates", "age", "diagnosis"], 64, "--covariates: diagnosis is constant"),
        (None, ["--covariates", "age"], 64, "add --participants"),
        (None, ["--reference", "-1"], 64, "must be 0 mm or more"),
        (lambda folder: (folder / "out").touch(), [], 73, "is a file; name a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_nothing_is_written(tables, change, more, code, cause, capsys):
    if change is not None:
        change(tables)
    assert correct(tables, *(tables / "participants.tsv" if word == "P" else word for word in more)) == code
    error = capsys.readouterr().err
    assert cause in error
    assert len(error.splitlines()) == (code != 0)
    assert (tables / "out").is_dir() == (code == 0)
