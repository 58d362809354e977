"""`python -m llavacot_mlx` is `llavacot`."""

from llavacot_mlx.cli.main import run

run()
