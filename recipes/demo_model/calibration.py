"""Pictures and questions of the calibration split, as `llavacot calibrate` reads them.

python recipes/demo_model/calibration.py OUT [--count 200]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evaluate import asked

from llavacot_mlx.demo.world import CALIBRATION, draw


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="a folder, for questions.jsonl and the pictures")
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "questions.jsonl").open("w", encoding="utf-8") as rows:
        for index in range(arguments.count):
            world, question = asked(CALIBRATION, index)
            name = f"{index}.png"
            draw(world).save(arguments.out / name)
            rows.write(json.dumps({"image": name, "question": question.text}) + "\n")


if __name__ == "__main__":
    main()
