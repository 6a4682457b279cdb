"""The parts of ``pydl train``: recipes, one model in training, checkpoints, the run's folder, the display."""
