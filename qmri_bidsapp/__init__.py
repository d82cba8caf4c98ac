"""qmri_bidsapp: quantitative-MRI maps from BIDS data, with an honest account of their uncertainty."""

__version__: str


def __getattr__(name: str) -> str:
    """Return the installed version on first use, so that importing the package stays cheap."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    globals()[name] = found = version("qmri-bidsapp")
    return found
