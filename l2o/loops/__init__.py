"""What surrounds an optimizer in a training loop."""
