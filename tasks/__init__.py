"""Concrete inner problems, written as a user would: with what l2o offers to everybody."""
