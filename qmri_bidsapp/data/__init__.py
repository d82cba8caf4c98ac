"""Data files: references, templates."""
