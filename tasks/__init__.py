"""Concrete inner problems, written as a user would write them: with public l2o names only."""
