"""A small whole-head BIDS data set with known truth."""
