"""The training engine: options, building, optimiser, run folder, checkpoints, log, evaluation."""
