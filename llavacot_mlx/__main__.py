"""`python -m llavacot_mlx` is `llavacot`."""

from .cli.main import run

run()
