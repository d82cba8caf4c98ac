"""How far estimates can be trusted: what an estimator makes of all tissue, and what its estimates may mean."""
