"""Release files that come with the package."""
