"""Nipype nodes: one file in, one call, one file out."""
