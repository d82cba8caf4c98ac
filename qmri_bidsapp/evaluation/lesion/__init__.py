"""What trust maps show of a lesion that an estimator hides."""
