"""Estimators: from signals to parameters, standard deviations and status."""
