"""The section of the reports on the correction of measures for motion."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from qmri_bidsapp.group.motion_correction import MotionCorrection
from qmri_bidsapp.units import DISPLAY_UNITS

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

#: Measures shown in the forest plot and as scatter plots: those with the smallest p-values.
MAX_SLOPES, MAX_SCATTERS = 40, 6


def page_template(name: str) -> jinja2.Template:
    """Return a jinja2 template of the reports, such as ``group.html``."""
    import jinja2

    loader = jinja2.PackageLoader("qmri_bidsapp.reports", "data")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(name)


def motion_page(found: MotionCorrection) -> str:
    """Return the report of a correction, as HTML."""
    return page_template("motion_report.html").render(motion=motion_section(found))


def motion_section(found: MotionCorrection | None, reason: str = "") -> dict[str, Any]:
    """Return the variables of the template ``motion.html``: a correction, or the reason for its absence."""
    if found is None:
        return {"reason": reason or "it was not requested."}
    slopes = found.correction.slopes
    refused: dict[str, list[str]] = {}
    for row in slopes[slopes["note"] != ""].to_dict("records"):
        refused.setdefault(row["note"], []).append(row["measure"])
    forest, scatters = _figures(found)
    n_slopes = int(slopes["slope"].notna().sum())
    return {
        "found": found,
        "covariates": ", ".join(sorted({name for name in slopes["covariates"] if name})),
        "refused": [
            f"{len(names)} measures ({names[0]}{', ...' * (len(names) > 1)}): {note}."
            for note, names in refused.items()
        ],
        "forest": forest,
        "scatters": scatters,
        "n_slopes": n_slopes,
        "n_shown": min(n_slopes, MAX_SLOPES),
    }


def _figures(found: MotionCorrection) -> tuple[str, list[str]]:
    """Return the forest plot and the scatter plots, by ascending p-value, as SVG; empty without a slope."""
    from qmri_bidsapp.group.correction_figures import forest_figure, scatter_figure

    slopes = found.correction.slopes.dropna(subset=["slope"]).sort_values("p_value", kind="stable")
    if slopes.empty:
        return "", []
    values = found.measures.values
    spread = {name: line.spread for name, line in found.correction.lines.items()}
    forest = forest_figure(slopes.head(MAX_SLOPES).assign(spread=slopes["measure"].map(spread)))
    scatters = []
    for name in slopes["measure"].head(MAX_SCATTERS):
        line = found.correction.lines[name]
        unit = found.measures.units.get(name, "")
        label, factor = DISPLAY_UNITS.get(unit, (unit, 1.0))
        scatters.append(
            scatter_figure(
                np.asarray(found.motion, dtype=float),
                np.asarray(values[name], dtype=float) * factor,
                slope=line.slope * factor,
                intercept=line.intercept * factor,
                title=name,
                unit=label or ("fraction" if unit else ""),
            )
        )
    return inline_svg(forest), [inline_svg(figure) for figure in scatters]


def inline_svg(figure: Figure) -> str:
    """Return a figure as an SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return "".join(stream.getvalue().partition("<svg")[1:])
