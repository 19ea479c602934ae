"""Fixtures of image data."""

from small_images import cache, folder  # noqa: F401
