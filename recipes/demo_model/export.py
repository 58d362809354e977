"""Writes a training run's model as a Hugging Face folder, complete with tokenizer and settings.

python recipes/demo_model/export.py RUN OUT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import new_model
from tiles import settings
from tokenizer import save_tokenizer
from tokenizers import Tokenizer
from train import SEED


def export(run: Path, out: Path) -> None:
    """Writes the joint phase's checkpoint as bfloat16 safetensors, with all settings files."""
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    model = new_model(tokenizer, SEED)
    saved = torch.load(run / "joint.pt")
    model.load_state_dict(saved["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    save_tokenizer(tokenizer, out)
    (out / "preprocessor_config.json").write_text(json.dumps(settings(), indent=2) + "\n")
    print(f"step {saved['step']} after {saved['seconds']:.0f} s of training: {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    export(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
