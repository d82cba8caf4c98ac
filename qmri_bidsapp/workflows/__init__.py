"""Nipype graphs, built from plain data."""
