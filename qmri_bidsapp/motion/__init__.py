"""A motion score for T1-weighted images: simulated motion, and a network that learns to see it."""
