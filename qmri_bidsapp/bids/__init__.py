"""Edges to BIDS: finding inputs, naming and writing outputs."""
