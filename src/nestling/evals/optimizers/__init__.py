"""Which optimiser, on which problem? Toy curves, sequences of tasks, small vision and language models."""
