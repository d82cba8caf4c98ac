"""The experiments of Sabidussi et al. (2021)."""
