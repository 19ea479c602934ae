"""Runs on disk: folders, checkpoints, metrics, provenance."""
