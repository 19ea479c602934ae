"""Networks that families of tasks are made of, as Flax NNX modules."""
