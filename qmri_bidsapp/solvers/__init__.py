"""Numerical solvers on batches of problems, in torch or numpy; they know no model and no estimator."""
