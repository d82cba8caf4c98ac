"""Code that tests of several folders share; on the path by `pythonpath` in pyproject.toml."""
