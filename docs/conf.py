"""Sphinx configuration. The lists of options and models are generated from the program."""

from __future__ import annotations

import os
from pathlib import Path

from bidsschematools.schema import load_schema

from qmri_bidsapp import __version__
from qmri_bidsapp.bids.kinds import load_kinds
from qmri_bidsapp.cli.app.parser import build_parser
from qmri_bidsapp.cli.tools import build_parser as build_tools_parser
from qmri_bidsapp.registry import get_model, load_estimators, load_models

project = "qmri_bidsapp"
author = "The qmri_bidsapp developers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "numpydoc"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 2
html_theme = "furo"
html_title = f"qmri_bidsapp {version}"
exclude_patterns = ["_build", "generated"]
numpydoc_show_class_members = False
autodoc_typehints = "none"

GENERATED = Path(__file__).parent / "generated"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _write_models() -> None:
    text = ""
    for name in load_models():
        model = get_model(name)
        fitting = ", ".join(key for key, estimator in load_estimators().items() if estimator.supports(model))
        equation = (type(model).__doc__ or "").partition(".. math::")[2].split("\n\n")[0].strip()
        text += f"## {model.title} (`{name}`)\n\n$$\n{' '.join(equation.split())}\n$$\n\n"
        source = ", ".join(model.bids_suffixes) or "Python only"
        needs = f" Needs: {model.needs}." if model.needs else ""
        text += f"From: {source}.{needs} Estimators: {fitting}. Source: {model.reference}.\n\n"
        rows = [
            [
                f"`{p.bids_suffix or 'param-' + p.label}`" if p.saved else "not written",
                p.description,
                p.unit,
                f"{p.bounds[0]:g} to {p.bounds[1]:g}",
            ]
            for p in (*model.parameters, *model.derived)
        ]
        rows += [[f"`{p.bids_suffix}`", f"{p.description} (known)", p.unit, "from a map"] for p in model.covariates]
        text += _table(["BIDS name", "parameter", "unit", "bounds"], rows) + "\n"
    (GENERATED / "models.md").write_text(text)


def _write_fields() -> None:
    """Write the sidecar fields of every suffix: from the program's rows, and from the BIDS schema."""
    rules = load_schema().rules.sidecars.qmri.to_dict().values()
    rows = []
    for kind in load_kinds().values():
        own = {field: "/".join(f"`{name}`" for name in field.names) for field in kind.fields}
        units = {field: f" ({field.unit})" if field.unit else " (true or false)" for field in kind.fields}
        needed = [text + units[field] for field, text in own.items() if field.is_required]
        needed += ["gradient table (`.bval`, `.bvec`)"] if kind.is_diffusion else []
        used = [text + units[field] for field, text in own.items() if not field.is_required]
        used += ["`PartialFourier`"] if kind.is_diffusion else []
        by_bids = [
            f"`{name}`"
            for rule in rules
            if f'suffix == "{kind.suffix}"' in rule["selectors"]
            for name, level in rule["fields"].items()
            if level == "required" and not any(field.names == (name,) and field.is_required for field in kind.fields)
        ]
        rows.append([f"`{kind.suffix}`", *("; ".join(part) or "none" for part in (needed, by_bids, used))])
    header = ["suffix", "needed", "also required by BIDS", "used where present"]
    (GENERATED / "fields.md").write_text(_table(header, rows))


GENERATED.mkdir(exist_ok=True)
os.environ["COLUMNS"] = "100"
(GENERATED / "help.txt").write_text(build_parser().format_help())
tools_parser = build_tools_parser()
(GENERATED / "qmri.txt").write_text(tools_parser.format_help())
(tools,) = tools_parser._subparsers._group_actions
for name in ("demo", "fit", "correct", "train", "check-repeatability"):
    (GENERATED / f"{name}.txt").write_text(tools.choices[name].format_help())
(trainings,) = tools.choices["train"]._subparsers._group_actions
for name in ("motion", "qc-head"):
    (GENERATED / f"{name}.txt").write_text(trainings.choices[name].format_help())
(measurements,) = tools.choices["evaluate"]._subparsers._group_actions
evaluations = "\n".join(parser.format_help() for parser in measurements.choices.values())
(GENERATED / "evaluate.txt").write_text(evaluations)
# All models have the same options.
(GENERATED / "train-model.txt").write_text(trainings.choices["t2"].format_help().replace("train t2", "train MODEL"))
_write_models()
_write_fields()
