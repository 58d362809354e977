"""From a checkpoint in any layout to an MLX folder: `run.convert` is the whole of it."""
