"""A motion score for T1w images: a network trained on simulated motion, with checks of its input."""
