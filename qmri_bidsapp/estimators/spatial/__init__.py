"""Networks that see the neighbourhood of a voxel."""
