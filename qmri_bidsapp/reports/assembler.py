"""The report of a participant. Nireports assembles it from the record, the maps and the crash files alone."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from qmri_bidsapp.artifacts.atomic import atomic_file
from qmri_bidsapp.bids.record import FitRecord, OrientationRecord, SeriesRecord, SubjectRecord, TruthRecord
from qmri_bidsapp.bids.record_files import read_record, record_file
from qmri_bidsapp.bids.result_names import TISSUE_LABELS
from qmri_bidsapp.bids.usable_record import UsableRecord
from qmri_bidsapp.reports import tables
from qmri_bidsapp.reports.certificate import certificate_figure, certificate_text, truth_figure
from qmri_bidsapp.reports.figures import head_motion_figure, image_figure, map_figure, save_svg
from qmri_bidsapp.reports.flags import MANY, MOST, cluster_text, flag_figure, flag_text, main_reason, part_flagged
from qmri_bidsapp.reports.motion_score import score_notes, score_reportlets
from qmri_bidsapp.reports.truth import truth_text
from qmri_bidsapp.reports.unusual import unusual_text

#: Head motion is plotted if a volume moved by more than this, mm or rad.
VISIBLE_MOTION = 1e-6


def build_subject_report(out_dir: Path, subject: str, crash_dir: Path | None) -> Path:
    """Write ``sub-<label>.html`` and its figures.

    Parameters
    ----------
    out_dir : Path
        Output folder.
    subject : str
        Label, without ``sub-``.
    crash_dir : Path or None
        Folder of the crash files of the run; it need not exist.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    InputMissingError
        If the participant was never run, or its record cannot be read.
    """
    record = read_record(record_file(out_dir, subject))
    pages = _Reportlets(out_dir, subject)
    unusual, regions = unusual_text(out_dir, record)
    sections = [_summary(pages, record, regions)]
    if record.motion_scores:
        sections.append({"name": "Motion", "reportlets": score_reportlets(pages, record.motion_scores)})
    sections += [_series_section(pages, record, series) for series in record.series]
    if unusual:
        sections.append({"name": "Unusual regions", "reportlets": [pages.html("unusual", unusual)]})
    if (comparison := truth_text(out_dir, record)) is not None:
        sections.append({"name": "Truth", "reportlets": [pages.html("truth", comparison)]})
    if (out_dir / "logs" / "CITATION.html").is_file():
        sections.append({"name": "Methods", "reportlets": [pages.html("methods", _methods(out_dir))]})
    sections.append({"name": "Errors", "reportlets": [_errors(pages, crash_dir)]})
    return _assemble(out_dir, subject, sections)


class _Reportlets:
    """Writes figures and snippets under names that nireports finds, and returns their entries."""

    def __init__(self, out_dir: Path, subject: str) -> None:
        self.out_dir, self._subject = out_dir, subject
        self._folder = out_dir / f"sub-{subject}" / "figures"
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(self._folder.glob(f"sub-{subject}_desc-*")):
            old.unlink()

    def _entry(self, name: str, extension: str, texts: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
        desc = re.sub("[^A-Za-z0-9]", "", name)
        path = self._folder / f"sub-{self._subject}_desc-{desc}_T1w{extension}"
        query = {"datatype": "figures", "desc": desc, "suffix": "T1w", "extension": extension}
        return path, {"bids": query, **texts}

    def html(self, name: str, text: str, **texts: str) -> dict[str, Any]:
        """Write a snippet; `texts` are nireports' subtitle, description and caption."""
        path, entry = self._entry(name, ".html", texts)
        path.write_text(text, encoding="utf-8")
        return entry

    def figure(self, name: str, figure: Any, **texts: str) -> dict[str, Any]:
        """Write a figure."""
        path, entry = self._entry(name, ".svg", texts)
        save_svg(figure, path)
        return entry

    def volume(self, relative: str) -> npt.NDArray[Any] | None:
        """Return an image of the output folder in RAS orientation, None if it does not exist."""
        path = self.out_dir / relative
        if not path.is_file():
            return None
        image = nib.as_closest_canonical(nib.load(path))
        return np.asarray(image.dataobj)


def _summary(pages: _Reportlets, record: SubjectRecord, regions: list[str]) -> dict[str, Any]:
    """Return the first section: problems, warnings and sentences on unusual regions, then the fits."""
    problems = [problem.message for problem in record.problems if problem.severity != "note"]
    hints = [problem.message for problem in record.problems if problem.severity == "note"]
    text = tables.notes(problems, "error") + tables.notes([*hints, *record.notes])
    for series in record.series:
        text += tables.notes([f"{series.name}: {note}" for note in series.notes], "warning")
    text += tables.notes([*score_notes(record.motion_scores), *regions], "warning")
    for fit in record.fits:
        usable = record.usable_of(fit)
        if usable is not None and usable.part_usable < 0.5:
            message = f"{fit.series}, {fit.model_title}: only {usable.part_usable:.0%} of the voxels are usable."
            text += tables.notes([message], "warning")
        if usable is not None and usable.clusters.stand_out:
            message = f"{fit.series}, {fit.model_title}, {fit.estimator_title}: {usable.clusters.text}."
            text += tables.notes([message], "warning")
        truth = record.truth_of(fit)
        flags = truth.flag_counts if truth else {}
        if part_flagged(flags) > MOST:
            message = (
                f"{fit.series}, {fit.model_title}, {fit.estimator_title}: {part_flagged(flags):.0%} of the "
                f"voxels are unlike all simulated voxels; main reason: {main_reason(flags)}."
            )
            text += tables.notes([message], "error")
    if record.fits:
        text += tables.overview_table(record)
    else:
        text += tables.notes(["No map was made for this participant."], "warning")
    text += f'<p class="elem-desc">qmri_bidsapp {escape(record.version)}</p>'
    return {"name": "Summary", "reportlets": [pages.html("summary", text)]}


def _series_section(pages: _Reportlets, record: SubjectRecord, series: SeriesRecord) -> dict[str, Any]:
    """Return the section of one series: protocol, preprocessing and fits."""
    name = series.name
    rows = tables.protocol_rows(series)
    reportlets = [
        pages.html(f"{name}protocol", tables.table(("Protocol as read", ""), rows) + tables.notes(series.notes))
    ]
    preproc = pages.volume(series.preproc) if series.preproc else None
    mask = pages.volume(series.mask) if series.mask else None
    tissues = pages.volume(series.tissues) if series.tissues else None
    if preproc is None or mask is None:
        missing = tables.notes([f"The images of {name} are not in the output folder."], "error")
        return {"name": name, "reportlets": [*reportlets, pages.html(f"{name}missing", missing)]}
    inside = mask > 0
    first = preproc if preproc.ndim == 3 else preproc[..., 0]
    title = "Outlines: brain mask" + ("" if tissues is None else ", white matter, CSF")
    reportlets.append(
        pages.figure(f"{name}image", image_figure(first, inside, tissues, title=title), subtitle="Image and mask")
    )
    motion = np.asarray(series.head_motion or np.zeros((0, 6)), dtype=float)
    if np.abs(motion).max(initial=0) > VISIBLE_MOTION:
        figure = head_motion_figure(motion)
        reportlets.append(pages.figure(f"{name}motion", figure, subtitle="Motion against the reference"))
    for found in record.orientations:
        if found.series == name:
            reportlets.append(_orientation_reportlet(pages, found, inside, tissues))
    for fit in record.fits:
        if fit.series == name:
            truth = record.truth_of(fit)
            maps = _fit_reportlets(pages, fit, inside, tissues)
            if truth is None:
                reportlets += maps
                continue
            flags = _flag_reportlets(pages, fit, truth, record.usable_of(fit), inside, tissues)
            reportlets += flags + maps if part_flagged(truth.flag_counts) > MANY else maps + flags
            reportlets += _trust_reportlets(pages, fit, truth, inside)
    return {"name": name, "reportlets": reportlets}


def _orientation_reportlet(
    pages: _Reportlets,
    found: OrientationRecord,
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
) -> dict[str, Any]:
    """Return the map of the number of fibre directions, with the fraction of voxels of each."""
    count = pages.volume(found.n_fibres)
    if count is None:
        text = tables.notes([f"{found.n_fibres} is not in the output folder."], "error")
        return pages.html(f"{found.series}nfibresmissing", text)
    white = mask if tissues is None else mask & (tissues == TISSUE_LABELS["WM"])
    known = count[white & np.isfinite(count)]
    shares = ", ".join(f"{n}: {np.mean(known == n) if known.size else 0:.0%}" for n in range(4))
    where = "the brain" if tissues is None else "white matter"
    figure = map_figure(
        count, None, mask, tissues, title="Number of fibre directions", unit="1", display_range=(0.0, 3.0)
    )
    caption = f"{found.n_fibres}. Voxels of {where} by number of directions: {shares}. {' '.join(found.notes)}"
    return pages.figure(f"{found.series}nfibres", figure, subtitle="Fibre directions", caption=caption)


def _fit_reportlets(
    pages: _Reportlets,
    fit: FitRecord,
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
) -> list[dict[str, Any]]:
    """Return status and maps of one fit."""
    identity = f"{fit.series}{fit.model}{fit.estimator}"
    training = fit.training.get("EstimatorTraining", "")
    about = (
        f"<p class='elem-desc'>{escape(fit.model_reference)}. Standard deviation: {escape(fit.std_kind)}. "
        f"{escape(training)}</p>"
    )
    reportlets = [
        pages.html(
            f"{identity}status",
            about + tables.status_table(fit.status_counts),
            subtitle=f"{fit.model_title}, {fit.estimator_title}",
        )
    ]
    for item in fit.maps:
        values, std = pages.volume(item.estimate), pages.volume(item.std)
        if values is None:
            text = tables.notes([f"{item.estimate} is not in the output folder."], "error")
            reportlets.append(pages.html(f"{identity}{item.parameter}missing", text))
            continue
        figure = map_figure(
            values,
            std if std is not None and np.isfinite(std).any() else None,
            mask,
            tissues,
            title=item.description,
            unit=item.unit,
            display_range=item.display_range,
        )
        reportlets.append(pages.figure(f"{identity}{item.parameter}", figure, caption=item.estimate))
    return reportlets


def _flag_reportlets(
    pages: _Reportlets,
    fit: FitRecord,
    found: TruthRecord,
    usable: UsableRecord | None,
    mask: npt.NDArray[np.bool_],
    tissues: npt.NDArray[np.uint8] | None,
) -> list[dict[str, Any]]:
    """Return the number of flagged voxels by reason and tissue, and a map of them; nothing without flags."""
    identity = f"{fit.series}{fit.model}{fit.estimator}"
    if found.flag is None:
        return []
    flags, item = pages.volume(found.flag), fit.maps[-1]
    values = pages.volume(item.estimate)
    if flags is None or values is None:
        text = tables.notes([f"{found.flag} or {item.estimate} is not in the output folder."], "error")
        return [pages.html(f"{identity}noflags", text)]
    regions = {"brain": mask}
    if tissues is not None:
        regions |= {name: mask & (tissues == label) for name, label in TISSUE_LABELS.items()}
    title = f"Out of distribution: {fit.model_title}, {fit.estimator_title}"
    text = flag_text(found.flag_counts, found.noise_factor, flags, regions)
    text += "" if usable is None else cluster_text(usable.clusters)
    figure = flag_figure(values, flags, mask, title=item.description, unit=item.unit)
    return [
        pages.html(f"{identity}flags", text, subtitle=title),
        pages.figure(f"{identity}flagged", figure, caption=found.flag),
    ]


def _trust_reportlets(
    pages: _Reportlets, fit: FitRecord, found: TruthRecord, mask: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Return the certificate of a fit, with maps of the expected bias and of the range of the truth."""
    identity, name = f"{fit.series}{fit.model}{fit.estimator}", found.certificate
    title = f"How far to trust it: {fit.model_title}, {fit.estimator_title}"
    if name is None:
        text = tables.notes(["No certificate: the noise of the series is unknown."])
        return [pages.html(f"{identity}nocertificate", text, subtitle=title)]
    file = pages.out_dir / name
    if not file.is_file():
        return [pages.html(f"{identity}nocertificate", tables.notes([f"{name} is not in the output folder."], "error"))]
    summary = json.loads(file.read_text(encoding="utf-8"))
    text = certificate_text(summary, found.counts, found.wide_counts, name)
    reportlets = [
        pages.html(f"{identity}trust", text, subtitle=title),
        pages.figure(f"{identity}bias", certificate_figure(summary)),
    ]
    maps = {item.parameter: item for item in found.maps}
    for parameter in summary["axes"]:
        names = maps[parameter]
        bias, low, high = (pages.volume(name) for name in (names.bias, names.truth_low, names.truth_high))
        if bias is None or low is None or high is None:
            continue
        quantity = summary["quantities"][parameter]
        figure = truth_figure(bias, low, high, mask, title=quantity["description"], unit=quantity["unit"])
        reportlets.append(pages.figure(f"{identity}{parameter}truth", figure, caption=names.bias))
    return reportlets


def _methods(out_dir: Path) -> str:
    text = (out_dir / "logs" / "CITATION.html").read_text(encoding="utf-8")
    return text.partition("<body>")[2].partition("</body>")[0]


def _errors(pages: _Reportlets, crash_dir: Path | None) -> dict[str, Any]:
    """Return the crash files of the run."""
    files = sorted(crash_dir.glob("crash-*")) if crash_dir is not None else []
    if not files:
        return pages.html("errors", tables.notes(["No step failed."]))
    text = ""
    for path in files:
        lines = path.read_text(encoding="utf-8", errors="replace")
        causes = [line for line in lines.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*:", line)]
        text += tables.notes([causes[-1].strip() if causes else path.name], "error")
        text += f"<details><summary>{escape(path.name)}</summary><pre>{escape(lines)}</pre></details>"
    return pages.html("errors", text)


def _assemble(out_dir: Path, subject: str, sections: list[dict[str, Any]]) -> Path:
    """Have nireports assemble the page, offline, with our template."""
    import yaml
    from nireports.assembler.report import Report

    target = out_dir / f"sub-{subject}.html"
    with (
        atomic_file(target) as temporary,
        resources.as_file(resources.files("qmri_bidsapp.reports.data")) as data,
        tempfile.TemporaryDirectory() as folder,
    ):
        specification = Path(folder) / "report.yml"
        settings = {
            "title": f"sub-{subject}",
            "template_path": str(data / "report.html"),
            "sections": sections,
        }
        specification.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=10**6))
        # The folder selects the participant: the filter of nireports rejects labels with a plus sign.
        report = Report(
            out_dir,
            None,
            bootstrap_file=specification,
            out_filename=str(temporary.absolute()),
            reportlets_dir=out_dir / f"sub-{subject}",
        )
        report.generate_report()
    return target
