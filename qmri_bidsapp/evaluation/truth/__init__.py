"""Maps of a run against the true maps of simulated data."""
