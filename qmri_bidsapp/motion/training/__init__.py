"""Training of the motion score: simulation, heads, network."""
