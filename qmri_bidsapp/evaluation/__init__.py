"""Measuring models and estimators: standard protocols, simulated voxels, speed, peers."""
