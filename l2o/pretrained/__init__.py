"""Release files that ship with the package, each with its card (a Markdown file beside it)."""
