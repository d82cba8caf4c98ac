"""qmri_bidsapp: quantitative-MRI maps from BIDS data, with an honest account of their uncertainty.

In Python, ``import qmri_bidsapp as qmri`` gives `qmri.fit`, `qmri.certify` and `qmri.score_motion`. They are imported
on first use, so that importing the package stays cheap; their types are in ``__init__.pyi``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = ("Maps", "certify", "fit", "score_motion")


def __getattr__(name: str) -> Any:
    """Return a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("qmri-bidsapp")
    elif name in _PUBLIC:
        found = getattr(import_module("qmri_bidsapp.api"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted((*_PUBLIC, "__version__"))
