from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from qmri_bidsapp.cli import tools
from qmri_bidsapp.group.aggregate import GroupTable, _write
from qmri_bidsapp.group.motion_correction import correct_group, scan_scores
from qmri_bidsapp.group.report import write_group_report

N = 24


def row(participant, session, tissue, median, unit):
    series = f"ses-{session}_IRT1" if session else "IRT1"
    origin = {"participant_id": participant, "session": session, "series": series, "model": "t1", "estimator": "nlls"}
    counts = {"n_voxels": 9, "n_excluded": 0, "n_unlike": None}
    return {**origin, "tissue": tissue, **counts, "median": median, "q1": None, "q3": None, "iqr": None, "unit": unit}


def write_scans(out, participant, session, score, name="desc-preproc_T1w.nii.gz"):
    folder = out / participant / (f"ses-{session}" if session else "")
    folder.mkdir(parents=True, exist_ok=True)
    stem = participant + (f"_ses-{session}" if session else "")
    lines = [f"anat/{stem}_{name}\t{score}\t0\t4", f"anat/{stem}_desc-x_MESE.nii.gz\t9\t0\t4"]
    header = "filename\tmotion_score\tmotion_score_low\tmotion_score_high"
    (folder / f"{stem}_scans.tsv").write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture(params=["one session", "two sessions"])
def study(request, tmp_path):
    """Return output folder, data set and group tables: grey matter changes with motion by -0.05 s/mm."""
    out, bids = tmp_path / "out", tmp_path / "bids"
    bids.mkdir()
    rng = np.random.default_rng(0)
    tables = [GroupTable("R1map", "R1", "1/s"), GroupTable("T1map", "T1", "s")]
    people = ["participant_id\tage\tsex\tsite"]
    for k in range(N):
        name, own = f"sub-{k:02d}", rng.gamma(2.0, 0.4)
        people.append(f"{name}\t{rng.integers(20, 80)}\t{'FM'[k % 2]}\tA")
        for session in ("1", "2") if request.param == "two sessions" else (None,):
            motion = own * rng.uniform(0.6, 1.4)
            write_scans(out, name, session, f"{motion:.5f}")
            for tissue, t1, slope in (("GM", 1.3, -0.05), ("WM", 0.8, 0.0)):
                median = float(t1 + slope * motion + 0.01 * rng.standard_normal())
                tables[1].rows.append(row(name, session, tissue, median, "s"))
                tables[0].rows.append(row(name, session, tissue, 1 / median, "1/s"))
    (bids / "participants.tsv").write_text("\n".join(people) + "\n")
    return out, bids, tables


def read(path):
    return pd.read_csv(path, sep="\t", na_values="n/a", dtype={"session": str})


def test_group_tables_are_corrected(study):
    out, bids, tables = study
    found, reason, warnings = correct_group(out, bids, tables)
    assert (reason, warnings) == ("", [])
    slopes = read(out / "group_motion_slopes.tsv").set_index("measure")
    assert sorted(slopes.index) == [f"{m}_IRT1_t1_nlls_{t}" for m in ("R1map", "T1map") for t in ("GM", "WM")]
    grey = slopes.loc["T1map_IRT1_t1_nlls_GM"]
    assert grey["slope_low"] < -0.05 < grey["slope_high"] < 0
    assert (grey["unit"], grey["covariates"], grey["n_participants"]) == ("s", "age, sex", N)
    assert slopes.loc["T1map_IRT1_t1_nlls_WM", "p_fdr"] > 0.05
    adjusted = read(out / "group_T1map_motionadjusted.tsv")
    assert list(adjusted["series"]) == [item["series"] for item in tables[1].rows]
    np.testing.assert_allclose(adjusted["median"], [item["median"] for item in tables[1].rows], rtol=1e-5)
    is_grey = adjusted["tissue"] == "GM"
    assert abs(np.corrcoef(adjusted["motion_score"][is_grey], adjusted["median_adjusted"][is_grey])[0, 1]) < 0.3
    assert list(json.loads((out / "group_T1map_motionadjusted.json").read_text())) == list(adjusted)
    page = write_group_report(out, tables, [], found).read_text()
    assert "group_motion_slopes.tsv" in page
    assert page.count("<svg") == 2 + 1 + 4
    assert ("several sessions" in page) == (grey["n"] == 2 * N)


def test_the_command_finds_the_same_in_a_group_table(study):
    out, bids, tables = study
    correct_group(out, bids, tables)
    _write(out, tables[1])
    scores = scan_scores(out)[0].rename_axis(["participant_id", "session_id"]).rename("motion_score")
    scores.reset_index().to_csv(out / "motion.tsv", sep="\t", index=False)
    words = ["correct", "--measures", out / "group_T1map.tsv", "--motion", out / "motion.tsv"]
    words += ["--participants", bids / "participants.tsv", "--out", out / "again"]
    assert tools.main([str(word) for word in words]) == 0
    slopes, again = (
        read(path).set_index("measure") for path in (out / "group_motion_slopes.tsv", out / "again/motion_slopes.tsv")
    )
    np.testing.assert_allclose(again["slope"], slopes.loc[again.index, "slope"], atol=1e-4)
    adjusted, wide = read(out / "group_T1map_motionadjusted.tsv"), read(out / "again/motion_adjusted.tsv")
    assert list(adjusted) == list(wide)
    np.testing.assert_allclose(wide["median_adjusted"], adjusted["median_adjusted"], rtol=1e-3)


def test_why_there_is_no_correction_is_said(study):
    out, bids, tables = study
    correct_group(out, bids, tables)
    for k in range(9, N):
        for path in out.glob(f"sub-{k:02d}/**/*_scans.tsv"):
            path.unlink()
    (out / "group_motion_of_mine.tsv").touch()
    found, reason, _ = correct_group(out, bids, tables)
    assert found is None
    assert reason == "9 participants have a motion score, 10 are needed."
    # What the first run wrote would now be of other participants.
    assert [path.name for path in out.glob("group_*motion*")] == ["group_motion_of_mine.tsv"]
    assert reason in write_group_report(out, tables, [], None, reason).read_text()
    assert correct_group(out, bids, [])[1] == "No participant has a motion score of its T1w."


def test_unreadable_scores_are_named_and_the_others_count(study):
    out, bids, tables = study
    paths = sorted(out.glob("sub-*/**/*_scans.tsv"))
    paths[0].write_text("filename\tmotion_score\nanat/sub-00_T1w.nii.gz\tmuch\n")
    paths[-1].write_bytes(b"\xff\xfe\x00")
    found, _, warnings = correct_group(out, bids, tables)
    assert len(warnings) == 2
    assert "got 'much'" in warnings[0]
    assert found is not None
    assert int(found.motion.isna().sum()) == 2
    assert any("2 of" in note for note in found.notes)


def test_participants_that_cannot_be_used(study):
    out, bids, tables = study
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-00\t3\nsub-00\t4\n")
    assert "sub-00 comes more than once" in correct_group(out, bids, tables)[1]
    (bids / "participants.tsv").write_text("participant_id\tIQ\nsub-00\t100\n")
    found, reason, _ = correct_group(out, bids, tables)
    assert reason == ""
    assert "participants.tsv has no column age." in found.notes
    assert set(found.correction.slopes["covariates"]) == {""}
    (bids / "participants.tsv").unlink()
    found, reason, _ = correct_group(out, bids, tables)
    assert reason == ""
    assert any("no participants.tsv" in note for note in found.notes)


def test_labels_that_fit_nowhere_are_said(study):
    out, bids, tables = study
    people = (bids / "participants.tsv").read_text()
    (bids / "participants.tsv").write_text(people.replace("sub-0", "").replace("sub-", "x"))
    found, reason, _ = correct_group(out, bids, tables)
    assert reason == ""
    assert any("participants.tsv have no participant in common: sub-00 against sub-0;" in note for note in found.notes)
    assert set(found.correction.slopes["covariates"]) == {""}
    (bids / "participants.tsv").write_text(people)
    for table in tables:
        table.rows = [{**item, "participant_id": item["participant_id"] + "x"} for item in table.rows]
    found, reason, _ = correct_group(out, bids, tables)
    assert found is None
    assert reason.startswith("The group tables and the motion scores in scans.tsv have no participant")


def test_scores_of_a_session_are_averaged(tmp_path):
    write_scans(tmp_path, "sub-a+1", None, "1.5")
    path = tmp_path / "sub-a+1/sub-a+1_scans.tsv"
    path.write_text(path.read_text() + "anat/sub-a+1_run-2_T1w.nii.gz\t2.5\t0\t4\nanat/x_T1w.json\t4\t0\t0\n")
    write_scans(tmp_path, "sub-b", None, "n/a")
    scores, warnings = scan_scores(tmp_path)
    assert (scores.to_dict(), warnings) == ({("a+1", ""): 2.0}, [])
