"""The real `llavacot` command over the fake engine: fake_llavacot.py SCRIPT.json ask …

The script is a JSON object with the fields of `fakes.Script`. The demo model and its example
picture are the files `demo` and `example.png` beside the script.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

from fakes import FakeAssistant, Script

from llavacot_mlx import demo


def main() -> None:
    script = Path(sys.argv.pop(1))
    FakeAssistant.script = Script(**json.loads(script.read_text(encoding="utf-8")))
    engine = types.ModuleType("llavacot_mlx.assistant")
    engine.Assistant = FakeAssistant  # type: ignore[attr-defined]
    sys.modules[engine.__name__] = engine
    demo.model_path = lambda: script.parent / "demo"
    demo.example_path = lambda name="square": script.parent / "example.png"
    sys.argv[0] = "llavacot"

    from llavacot_mlx.cli.main import run

    run()


if __name__ == "__main__":
    main()
