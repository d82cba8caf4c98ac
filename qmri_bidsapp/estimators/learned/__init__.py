"""Estimators trained on simulated voxels."""
