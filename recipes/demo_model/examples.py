"""Draws the package's example pictures from held-out seeds.

python recipes/demo_model/examples.py [OUT]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import EXAMPLES, caption, draw, scene

# File name: number of the scene in the split, picked by eye.
CHOSEN = {"square": 9, "busy": 33, "wide": 413, "tall": 61}
LONGEST = 384  # pixels along the longer side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=model_path().parent / "examples")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, number in CHOSEN.items():
        world = scene(EXAMPLES.seed(number))
        world = replace(world, scale=LONGEST / max(world.width, world.height))
        draw(world).save(out / f"{name}.png", optimize=True)
        print(f"{name}.png: {caption(world)}")


if __name__ == "__main__":
    main()
