"""qmri_bidsapp: quantitative-MRI maps from BIDS data, with an honest account of their uncertainty."""

__version__ = "0.1.0"
