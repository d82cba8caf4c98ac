"""Least squares and maximum likelihood."""
