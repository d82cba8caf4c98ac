"""Command lines: qmri-bids (the BIDS App) and qmri (everything else)."""
