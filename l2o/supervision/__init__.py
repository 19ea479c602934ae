"""Tasks of data and a network."""
