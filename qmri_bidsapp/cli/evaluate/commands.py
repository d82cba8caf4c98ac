"""``qmri evaluate``: measure models, estimators, flags and the motion score."""

from __future__ import annotations

from typing import Any

from qmri_bidsapp.cli.evaluate import flags, lesion, motion, relaxometry, robustness, speed, table3


def add_parser(commands: Any) -> None:
    """Add ``evaluate`` to the commands of ``qmri``."""
    evaluate = commands.add_parser("evaluate", help="measure models and estimators")
    what = evaluate.add_subparsers(dest="what", required=True, metavar="WHAT", parser_class=type(evaluate))
    for module in (speed, table3, relaxometry, flags, lesion, robustness, motion):
        module.add_parser(what)
