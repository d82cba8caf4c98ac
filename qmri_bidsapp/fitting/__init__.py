"""Fit a series, judge the fit, and do once per protocol what can be done once; no nipype."""
