"""Experiments of Sabidussi et al. (2021)."""
