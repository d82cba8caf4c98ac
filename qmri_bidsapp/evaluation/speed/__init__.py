"""Voxels per second of estimators and of other programs."""
