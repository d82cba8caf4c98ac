"""NIfTI images and gradient tables to arrays and back."""
