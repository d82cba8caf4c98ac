"""The BIDS App, qmri-bids."""
