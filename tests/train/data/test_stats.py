"""Figures of a file of rows, against counts that are made another way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from demo_rows import row

from llavacot_mlx import demo
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.train.data.checks import check_rows
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.stats import NO_FOLDER, NO_PICTURE, Stats

CONFIG = load_config(demo.model_path())
TOKENIZER = Tokenizer.load(demo.model_path(), CONFIG)
IMAGE_PROCESSOR = ImageProcessor.load(demo.model_path(), CONFIG.vision)


def reply(conclusion: str) -> str:
    return (
        "<SUMMARY> I count. </SUMMARY>\n\n<CAPTION> one. two. </CAPTION>\n\n"
        f"<REASONING> red, no. </REASONING>\n\n<CONCLUSION> {conclusion} </CONCLUSION>"
    )


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Stats:
    """Of rows with and without a folder, without a picture, of two answers, and of bad ones."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "charts" / "deep").mkdir(parents=True)
    two_turns = row(folder, 3)
    two_turns["conversations"] += [
        {"from": "human", "value": "And?"},
        {"from": "gpt", "value": reply("red red red")},
    ]
    rows = [
        {**row(folder / "charts" / "deep", 1), "image": "charts/deep/1.png"},
        {**row(folder / "charts", 2), "image": "charts/2.png"},
        two_turns,
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "red"}]},
        {**row(folder, 4), "image": "gone/4.png"},
        [],
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Dataset.open(folder / "rows.jsonl", None)
    return Stats.of(check_rows(dataset, TOKENIZER, IMAGE_PROCESSOR, 10_000))


def test_rows_and_answers(stats: Stats) -> None:
    assert (stats.rows, stats.unreadable, stats.with_problems, stats.answers) == (5, 1, 3, 6)


def test_sources(stats: Stats) -> None:
    assert stats.sources == {"charts": 2, NO_FOLDER: 1, NO_PICTURE: 1, "gone": 1}


def test_tiles_are_of_pictures_that_are_there(stats: Stats) -> None:
    assert sum(stats.tiles.values()) == 3
    assert set(stats.tiles) <= {1, 2, 3, 4}


def test_stages_are_counted_by_answer(stats: Stats) -> None:
    """The fourth row has no stage, and the third has two of each."""
    assert {stage: len(counts) for stage, counts in stats.stages.items()} == dict.fromkeys(Stage, 5)
    # The third row's second answer, whose words are single tokens; of "red, no." four tokens.
    assert len(TOKENIZER.encode(" red red red")) == 3
    assert stats.stages[Stage.CONCLUSION][3] == 3
    assert stats.stages[Stage.REASONING][3] == len(TOKENIZER.encode(" red, no."))


def test_learned_tokens_are_some_of_a_row(stats: Stats) -> None:
    assert stats.tokens.shape == stats.learned.shape == (5,)
    assert (stats.learned < stats.tokens).all()
    assert stats.learned[3] == len(TOKENIZER.encode("red")) + 1  # and the end of the turn


def test_the_object_of_json(stats: Stats) -> None:
    found = json.loads(json.dumps(stats.to_dict()))
    assert found["pictures"] == 3
    assert found["sources"]["charts"] == 2
    assert list(found["tokens"]) == ["row", "learned", *Stage]
    assert found["tokens"]["row"] == {
        "count": 5,
        "mean": round(float(np.mean(stats.tokens)), 2),
        "median": float(np.median(stats.tokens)),
        "max": int(np.max(stats.tokens)),
    }


def test_nothing_at_all() -> None:
    assert Stats.of([]).to_dict()["tokens"]["row"] is None
