"""Draws the losses of several trainings in one figure: `python curves.py PICTURE NAME=ADAPTER …`.

Each NAME=ADAPTER is a line's name and the folder that `llavacot lora-train` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llavacot_mlx.train.log import read_log
from llavacot_mlx.train.plots import draw_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=ADAPTER")
    arguments = parser.parse_args()
    logs = {}
    for run in arguments.runs:
        name, equals, adapter = run.partition("=")
        rows = read_log(Path(adapter))
        if not equals or not rows:
            parser.error(f"{run}: wants NAME=ADAPTER, with a log.jsonl in the folder ADAPTER")
        logs[name] = rows
        steps = [row for row in rows if "seconds" in row]
        validations = [row["val_loss"] for row in rows if "val_loss" in row]
        print(
            f"{name}: {steps[-1]['step']} steps, {sum(row['seconds'] for row in steps):.0f} s, "
            f"peak {max(row['peak_memory_bytes'] for row in steps) / 1e6:.0f} MB, "
            f"validation loss {', '.join(f'{loss:.4f}' for loss in validations)}"
        )
    draw_curves(logs, arguments.picture)


if __name__ == "__main__":
    main()
