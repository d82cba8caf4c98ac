"""Preprocessing as pure functions: images in, images out; no nipype."""
