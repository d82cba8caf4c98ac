"""``qmri``: all commands other than the BIDS App."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from qmri_bidsapp import __version__
from qmri_bidsapp.cli import correct, demo, fit, repeatability, train
from qmri_bidsapp.cli.arguments import Parser
from qmri_bidsapp.cli.evaluate import commands as evaluate
from qmri_bidsapp.cli.exits import exit_code, say_error, say_unexpected
from qmri_bidsapp.errors import QmriError

if TYPE_CHECKING:
    from qmri_bidsapp.models.base import SignalModel


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``qmri`` and all its commands; each is imported when it runs."""
    parser = Parser(prog="qmri", description="Tools beside the BIDS App qmri-bids.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"qmri {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    demo.add_parser(commands)
    models = commands.add_parser("models", help="list models and estimators")
    models.set_defaults(run=_models)
    fit.add_parser(commands)
    evaluate.add_parser(commands)
    train.add_parser(commands)
    correct.add_parser(commands)
    repeatability.add_parser(commands)
    boutiques = commands.add_parser("boutiques", help="print the Boutiques descriptor of qmri-bids")
    boutiques.set_defaults(run=_boutiques)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code; a failure prints its cause in one line."""
    try:
        arguments = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError as error:
        # The reader closed the pipe, as `head` does; the interpreter must not flush to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_code(error)
    except KeyboardInterrupt as error:
        say_error("qmri", "interrupted")
        return exit_code(error)
    except QmriError as error:
        say_error("qmri", f"error: {error}")
        return exit_code(error)
    except Exception as error:
        say_unexpected("qmri", error)
        return exit_code(error)
    return exit_code(None)


def _models(arguments: argparse.Namespace) -> None:
    from qmri_bidsapp.estimators.learned.base import LearnedEstimator
    from qmri_bidsapp.registry import get_model, load_estimators, load_models

    estimators = load_estimators()
    for name in load_models():
        model = get_model(name)
        fitting = [key for key, estimator in estimators.items() if estimator.supports(model)]
        print(f"{name}: {model.title}")
        source = ", ".join(model.bids_suffixes) or "Python only"
        print(f"  from        {source}{', opt-in' if model.opt_in else ''}")
        if model.needs:
            print(f"  needs       {model.needs}")
        for covariate in model.covariates:
            print(f"  uses        {covariate.bids_suffix}: {covariate.description}; {covariate.scale:g} without a map")
        print(f"  estimators  {', '.join(fitting)}")
        if any(issubclass(estimators[key], LearnedEstimator) for key in fitting):
            print(f"  --range     {_ranges(model)} (of qmri train)")
        for parameter in (p for p in (*model.parameters, *model.derived) if p.saved):
            target = parameter.bids_suffix or f"param-{parameter.label}"
            print(f"  {target:<30} {parameter.description} [{parameter.unit}]")
        print(f"  reference   {model.reference}")
    for name, estimator in estimators.items():
        print(f"{name}: {estimator.title}; standard deviation: {estimator.std_kind}")


def _ranges(model: SignalModel) -> str:
    """Return the parameters whose training range can be narrowed, with their bounds."""
    rotated = {model.parameters[i].name for part in model.directional for i in part.columns}
    ranges = model.default_prior().describe()["ranges"]
    return ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items() if name not in rotated)


def _boutiques(arguments: argparse.Namespace) -> None:
    from qmri_bidsapp.cli.app.boutiques import descriptor_text

    print(descriptor_text(), end="")


if __name__ == "__main__":
    sys.exit(main())
