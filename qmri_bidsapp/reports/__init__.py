"""Figures and HTML reports, made from the output folder alone."""
