"""Experiments with known truth: errors, speed, flags, lesions, motion; standard protocols and simulated tissue."""
