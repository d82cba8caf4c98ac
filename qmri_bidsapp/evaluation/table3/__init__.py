"""Table 3 of Gyori et al. (2021)."""
