"""Voxels per second, beside other programs."""
