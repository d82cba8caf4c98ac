"""Bayesian estimators without training."""
