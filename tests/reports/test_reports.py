from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from qmri_bidsapp.bids.record import (
    FitRecord,
    MapRecord,
    ProblemRecord,
    SeriesRecord,
    SubjectRecord,
    TruthMaps,
    TruthRecord,
)
from qmri_bidsapp.bids.record_files import read_record, record_file, write_record
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.data.bibliography import bundled_bibliography, format_references
from qmri_bidsapp.errors import InputMissingError
from qmri_bidsapp.fitting.clusters import Cluster, Clusters
from qmri_bidsapp.group.aggregate import GroupTable, aggregate
from qmri_bidsapp.group.report import outliers, protocol_differences, write_group_report
from qmri_bidsapp.reports import tables
from qmri_bidsapp.reports.assembler import build_subject_report
from qmri_bidsapp.reports.citation import resolve, write_citation
from qmri_bidsapp.reports.figures import choose_slices, map_figure, save_svg, tile
from qmri_bidsapp.reports.flags import MANY, MOST
from qmri_bidsapp.uncertainty.inverse import Trust
from qmri_bidsapp.uncertainty.ood import Reason


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder with one fit, one missing map and a problem."""
    shape = (12, 14, 6)
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, np.uint8)
    mask[2:-2, 2:-2, 1:-1] = 1
    values = np.where(mask, rng.normal(1.0, 0.1, shape), np.nan).astype(np.float32)
    anat = tmp_path / "sub-01" / "anat"
    save(anat / "pre.nii.gz", values * 100)
    save(anat / "mask.nii.gz", mask)
    save(anat / "dseg.nii.gz", mask * rng.integers(1, 4, shape).astype(np.uint8))
    save(anat / "sub-01_T1map.nii.gz", values)
    save(anat / "std.nii.gz", values / 20)
    save(anat / "status.nii.gz", mask)
    save(anat / "usable.nii.gz", mask)
    item = MapRecord(
        parameter="t1",
        description="T1 <b>",
        unit="s",
        display_range=(0.0, 2.0),
        estimate="sub-01/anat/sub-01_T1map.nii.gz",
        std="sub-01/anat/std.nii.gz",
    )
    series = SeriesRecord(
        name="IRT1",
        kind="IRT1",
        entities={},
        files=("sub-01/anat/a.nii.gz",),
        protocol={"type": "InversionRecovery", "inversion_time": [0.1, 0.5, 1.0]},
        notes=("Alignment left out.",),
        head_motion=((0.01, 0, 0, 1, 0, 0),),
        preproc="sub-01/anat/pre.nii.gz",
        mask="sub-01/anat/mask.nii.gz",
        tissues="sub-01/anat/dseg.nii.gz",
    )
    fit = FitRecord(
        series="IRT1",
        kind="IRT1",
        model="t1",
        model_title="T1",
        model_reference="Somebody 2010",
        estimator="nlls",
        estimator_title="NLLS",
        std_kind="CRB",
        status="sub-01/anat/status.nii.gz",
        status_counts={"OK": 100, "AT_BOUND": 300},
        seconds=1.0,
        maps=(item, replace(item, parameter="r1", estimate="sub-01/anat/sub-01_R1map.nii.gz")),
    )
    problem = ProblemRecord("x needs <EchoTime>", "MESE", "x")
    usable = UsableRecord("IRT1", "t1", "nlls", "sub-01/anat/usable.nii.gz", 400, 100)
    record = SubjectRecord("01", "0", series=(series,), fits=(fit,), usables=(usable,), problems=(problem,))
    write_record(record, tmp_path)
    return tmp_path


def with_truth(output: Path, **fields: object) -> None:
    """Put what a certificate says about the fit into the record."""
    record = read_record(record_file(output, "01"))
    truth = TruthRecord("IRT1", "t1", "nlls", **fields)  # type: ignore[arg-type]
    write_record(replace(record, truths=(truth,)), output)


def test_report_leads_with_problems_and_escapes_text(output: Path) -> None:
    crashes = output / "logs" / "sub-01" / "run"
    crashes.mkdir(parents=True)
    (crashes / "crash-1.txt").write_text("Traceback:\n  File x\nInputError: y <truncated>: copy it again\n")
    page = build_subject_report(output, "01", crashes).read_text()
    assert page.index("x needs &lt;EchoTime&gt;") < page.index("Protocol as read")
    assert "InputError: y &lt;truncated&gt;" in page
    assert "100, 500, 1000 ms" in page
    assert "only 25% of the voxels" in page
    assert "sub-01_R1map.nii.gz is not in the output folder" in page
    assert "<b>" not in page
    figures = sorted(path.name for path in (output / "sub-01" / "figures").glob("*.svg"))
    assert len(figures) == 3
    assert all(name in page for name in figures)


def test_report_of_a_subject_with_a_plus_in_its_label(output: Path) -> None:
    (output / "logs" / "sub-01.json").rename(output / "logs" / "sub-1+2.json")
    page = build_subject_report(output, "1+2", None).read_text()
    assert "sub-1+2_desc-IRT1image_T1w.svg" in page
    assert "Protocol as read" in page


def test_report_of_a_subject_that_was_never_run(output: Path) -> None:
    with pytest.raises(InputMissingError, match="run the participant level"):
        build_subject_report(output, "77", None)


def test_the_same_figure_gives_the_same_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    mask = np.ones((8, 8, 3), bool)
    for name in ("a.svg", "b.svg"):
        figure = map_figure(values, values, mask, None, title="t", unit="s", display_range=None)
        save_svg(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_mosaic_puts_left_on_the_left_and_anterior_up() -> None:
    volume = np.zeros((10, 12, 1))
    volume[0, -1, 0] = 1.0
    tiled = tile(volume, np.ones(volume.shape, bool))
    assert tiled[0, 0] == 1.0
    assert choose_slices(np.ones((2, 2, 100), bool))[0] > 0


def test_empty_map_can_be_drawn(tmp_path: Path) -> None:
    values = np.full((6, 6, 2), np.nan, np.float32)
    figure = map_figure(values, values, np.ones(values.shape, bool), None, title="t", unit="1", display_range=None)
    save_svg(figure, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text().rstrip().endswith("</svg>")


def test_status_table_has_percentages() -> None:
    assert "75.0 %" in tables.status_table({"OK": 300, "FAILED": 100})


class TestCitation:
    def test_marks_become_numbers(self) -> None:
        text, references = resolve("a [@n4] b [@robex] c [@n4]")
        assert text == "a [1] b [2] c [1]"
        assert "Tustison" in references[0]

    def test_unknown_key(self) -> None:
        with pytest.raises(ValueError, match="cites nobody"):
            resolve("[@nobody]")

    def test_two_works_of_one_key(self) -> None:
        other = "@article{n4,\n  author = {A},\n  year = {2000},\n  title = {B},\n  journal = {C}\n}\n"
        with pytest.raises(ValueError, match="Two references have the key n4"):
            resolve("[@n4]", other)
        with pytest.raises(ValueError, match="needs the field journal"):
            resolve("[@n5]", "@article{n5,\n  author = {A},\n  year = {2000},\n  title = {B}\n}\n")

    def test_bibliography_is_complete(self) -> None:
        assert len(format_references(bundled_bibliography())) >= 20

    def test_files(self, tmp_path: Path) -> None:
        write_citation(tmp_path, "Text & more [@bids].")
        assert "&amp; more [1]" in (tmp_path / "logs" / "CITATION.html").read_text()


class TestGroup:
    def test_only_usable_voxels_count(self, output: Path) -> None:
        anat = output / "sub-01" / "anat"
        save(anat / "sub-01_R1map.nii.gz", np.ones((12, 14, 6), np.float32))
        usable = np.asarray(nib.load(anat / "usable.nii.gz").dataobj).copy()
        left_out = int(usable[4:6].sum())
        usable[4:6] = 0
        save(anat / "usable.nii.gz", usable)
        found, warnings = aggregate(output)
        assert warnings == []
        table = next(item for item in found if item.name == "T1map")
        brain = next(row for row in table.rows if row["tissue"] == "brain")
        values = np.asarray(nib.load(anat / "sub-01_T1map.nii.gz").dataobj)
        assert brain["median"] == pytest.approx(float(np.median(values[usable == 1])))
        assert (brain["n_voxels"], brain["n_excluded"]) == (usable.sum(), left_out)
        assert sum(r["n_voxels"] for r in table.rows if r["tissue"] != "brain") == brain["n_voxels"]

    def test_a_missing_map_is_a_warning(self, output: Path) -> None:
        found, warnings = aggregate(output)
        assert found == []
        assert "cannot be read" in warnings[0]

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("status.nii.gz", lambda content: content[: len(content) // 2]),
            ("status.nii.gz", lambda _: b"not an image"),
            ("usable.nii.gz", lambda _: b"not an image"),
            ("sub-01_T1map.nii.gz", lambda content: content[:-20]),
        ],
    )
    def test_a_damaged_map_is_a_warning(self, output: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
        path = output / "sub-01" / "anat" / name
        save(path.with_name("sub-01_R1map.nii.gz"), np.ones((12, 14, 6), np.float32))
        path.write_bytes(damage(path.read_bytes()))
        found, (warning,) = aggregate(output)
        assert found == []
        assert "run the participant again" in warning

    @pytest.mark.parametrize("text", ["{", '{"subject": "02", "series": [], "fits": []}'], ids=["damaged", "older"])
    def test_a_record_that_cannot_be_read_is_a_warning(self, output: Path, text: str) -> None:
        (output / "logs" / "sub-02.json").write_text(text)
        save(output / "sub-01" / "anat" / "sub-01_R1map.nii.gz", np.ones((12, 14, 6), np.float32))
        found, (warning,) = aggregate(output)
        assert "sub-02.json" in warning
        assert warning.endswith("run participant sub-02 again.")
        assert [table.missing for table in found] == [["sub-02"], ["sub-02"]]

    def test_differences_of_protocol_are_told(self, output: Path) -> None:
        save(output / "sub-01" / "anat" / "sub-01_R1map.nii.gz", np.ones((12, 14, 6), np.float32))
        shutil.copytree(output / "sub-01", output / "sub-02")
        for path in list((output / "sub-02" / "anat").glob("sub-01_*")):
            path.rename(path.with_name(path.name.replace("sub-01", "sub-02")))
        text = (output / "logs" / "sub-01.json").read_text().replace("sub-01", "sub-02").replace("1.0\n", "2.0\n")
        (output / "logs" / "sub-02.json").write_text(text)
        found, warnings = aggregate(output)
        assert warnings == []
        (message,) = protocol_differences(found)
        assert "100, 500, 1000 ms in sub-01 (IRT1)" in message
        assert "100, 500, 2000 ms in sub-02 (IRT1)" in message
        write_group_report(output, found, warnings)
        assert message in (output / "group_report.html").read_text()

    def test_outliers_are_named(self) -> None:
        rows = [
            {"participant_id": f"sub-{i}", "series": "IRT1", "tissue": "WM", "median": 0.8 + 0.01 * (i % 3)}
            for i in range(9)
        ]
        rows[4]["median"] = 1.4
        (message,) = outliers(GroupTable("T1map", "T1", "s", rows))
        assert "sub-4" in message


@pytest.mark.parametrize("axes", [["t1"], ["inversion_factor", "t1"]], ids=["lines", "arrows"])
def test_certificate_is_shown(output: Path, axes: list[str]) -> None:
    """A figure, the voxels by kind with a warning of many, the sinks, and maps of bias and range."""
    column = {"truth": [0.5, 2.0, None], "bias": [0.1, -0.2, None], "std": [0.1, 0.3, None]}
    quantity = {"description": "T1 & so on", "is_scale": True, "by_truth": column}
    box = {"mean": 1.0, "percentiles": [0.8, 0.9, 1.0, 1.1, 1.3]}
    centre = [1.0] * len(axes)
    spans = [[0.9, 1.1]] * len(axes)
    summary = {
        "identity": {
            "n": 32768,
            "noise": {"kind": "rician", "snr": [25.1, 25.1]},
            "prior": {"name": "uniform"},
            "spread": 4.0,
        },
        "n_failed": 12,
        "debiasing": {"t1": {"bias": [0.1, 0.05], "std": [0.2, 0.3], "rmse": [0.22, 0.31]}},
        "axes": axes,
        "quantities": {
            "t1": {**quantity, "unit": "s"},
            "inversion_factor": {**quantity, "unit": "1", "is_scale": False},
        },
        "arrows": [{"truth": [1.8, 0.5], "estimate": [1.9, 0.6]}] if len(axes) == 2 else None,
        "sinks": [
            {"centre": centre, "extent": spans, "basin": spans, "share": 0.25, "pull": 0.5, "gathering": 3.0},
        ],
        "tissues": {"Grey matter": {"truth": dict.fromkeys(axes, 1.2), "estimates": dict.fromkeys(axes, box)}},
    }
    (output / "logs" / "certificates").mkdir()
    (output / "logs" / "certificates" / "t1.json").write_text(json.dumps(summary))
    with_truth(
        output,
        certificate="logs/certificates/t1.json",
        counts={"RANGE_GIVEN": 300, "WIDE": 100},
        wide_counts={"m0": 0, "inversion_factor": 100, "t1": 4},
        maps=(
            TruthMaps("t1", *["sub-01/anat/sub-01_T1map.nii.gz"] * 3),
            TruthMaps("inversion_factor", *["gone.nii.gz"] * 3),
        ),
    )
    page = build_subject_report(output, "01", None).read_text()
    assert "32,768 simulated voxels of this protocol, rician noise, signal-to-noise ratio 6.28 to 100; prior" in page
    assert "signal-to-noise ratio 25.1 (12 could not be estimated)" in page
    assert "inversion_factor 25.0%, t1 1.0%" in page
    assert "25% of the voxels: the range of the truth is wide" in page
    assert "1e+03 ms (900 to 1.1e+03)" in page
    assert "50% of the way" in page
    assert "200 to 300" in page
    figures = {path.name for path in (output / "sub-01" / "figures").glob("*.svg")}
    assert {"sub-01_desc-IRT1t1nllsbias_T1w.svg", "sub-01_desc-IRT1t1nllst1truth_T1w.svg"} <= figures
    (output / "logs" / "certificates" / "t1.json").unlink()
    assert "t1.json is not in the output folder" in build_subject_report(output, "01", None).read_text()
    with_truth(output)
    assert "the noise of the series is unknown" in build_subject_report(output, "01", None).read_text()


def flagged(output: Path, part: float) -> np.ndarray:
    """Flag that part of the voxels of the fit, the first ones, as misfits; return the flags."""
    anat = output / "sub-01" / "anat"
    save(anat / "sub-01_R1map.nii.gz", np.ones((12, 14, 6), np.float32))
    flags = np.asarray(nib.load(anat / "mask.nii.gz").dataobj).copy()
    inside = np.flatnonzero(flags)
    flags.flat[inside[: round(part * len(inside))]] = Reason.MISFIT
    save(anat / "flag.nii.gz", flags)
    save(anat / "trust.nii.gz", (flags > 0).astype(np.uint8) * np.uint8(Trust.RANGE_GIVEN))
    values, counts = np.unique(flags[flags > 0], return_counts=True)
    found = {Reason(v).name: int(n) for v, n in zip(values, counts, strict=True)}
    files = {what: f"sub-01/anat/{what}.nii.gz" for what in ("trust", "flag")}
    with_truth(output, **files, noise_factor=0.5, flag_counts=found)
    return flags


def with_cluster(output: Path) -> None:
    """Put a cluster of flagged voxels into the record that stands out."""
    record = read_record(record_file(output, "01"))
    clusters = Clusters(
        (
            Cluster(32, (28.0, 40.0, 0.0), (16.0, 16.0, 8.0), "right, anterior"),
            Cluster(3, (1.0, 2.0, 3.0), (4.0, 4.0, 4.0), "central"),
        ),
        5,
    )
    usables = tuple(replace(item, n_unlike=40, clusters=clusters) for item in record.usables)
    write_record(replace(record, usables=usables), output)


def test_a_cluster_that_stands_out_is_named_at_the_top(output: Path) -> None:
    flagged(output, 0.1)
    summary = build_subject_report(output, "01", None).read_text().partition("Protocol as read")[0]
    assert "largest flagged cluster" not in summary
    with_cluster(output)
    page = build_subject_report(output, "01", None).read_text()
    summary, _, rest = page.partition("Protocol as read")
    assert "32 voxels around (28, 40, 0) mm, right, anterior, 16 x 16 x 8 mm; the next has 3" in summary
    assert "25.0 %" in summary
    assert "10.0 %" in summary
    assert "Flags at random places make clusters of up to 5" in rest
    found, _ = aggregate(output)
    brain = next(row for row in found[0].rows if row["tissue"] == "brain")
    assert (brain["cluster_voxels"], brain["next_cluster_voxels"]) == (32, 3)
    assert brain["cluster_place"] == "28, 40, 0 mm: right, anterior"
    assert "32 voxels around" in write_group_report(output, found, []).read_text()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.3, 0.6])
def test_flags_lead_where_they_are_many(output: Path, part: float) -> None:
    flagged(output, part)
    page = build_subject_report(output, "01", None).read_text()
    assert page.index("Out of distribution: T1") < page.index("T1map.nii.gz") or part < MANY
    assert ("flag.nii.gz" in page[: page.index("sub-01_T1map.nii.gz")]) == (part > MANY)
    summary = page[: page.index("Protocol as read")]
    assert (
        f"{part:.0%} of the voxels are unlike all simulated voxels; main reason: the model does not" in summary
    ) == (part > MOST)
    assert ("No voxel is flagged" in page) == (part == 0)
    assert ("10.0 %" in page) == (part == 0.1)
    assert "0.50 times the measured noise" in page


def test_flags_in_the_group(output: Path) -> None:
    flags = flagged(output, 0.6)
    found, warnings = aggregate(output)
    assert warnings == []
    table = next(item for item in found if item.name == "T1map")
    brain = next(row for row in table.rows if row["tissue"] == "brain")
    assert brain["n_unlike"] == int((flags == Reason.MISFIT).sum())
    assert sum(row["n_unlike"] for row in table.rows if row["tissue"] != "brain") == brain["n_unlike"]
    page = write_group_report(output, found, warnings).read_text()
    assert page.count("sub-01, IRT1 t1 (nlls): 60%; main reason: the model does not fit") == 1
    (output / "sub-01" / "anat" / "flag.nii.gz").write_bytes(b"damaged")
    found, (warning,) = aggregate(output)
    assert "flag.nii.gz cannot be read" in warning
    table = next(item for item in found if item.name == "T1map")
    assert {row["n_unlike"] for row in table.rows} == {None}
    assert "n/a" in (output / table.file_name).read_text()
