"""Files for other scorers, as pandas reads them."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
from benchmark_files import ROWS, TSV_NAMES, mmbench_rows, write_set
from written_runs import concluded, write_run

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.export import ExportFormat, export_run
from llavacot_mlx.evaluate.open_sets import open_sets


@pytest.mark.parametrize("name", list(ROWS))
def test_a_file_for_the_kit_is_its_data_file_with_predictions(name: str, tmp_path: Path) -> None:
    path = write_set(tmp_path, name)
    sets = open_sets(name, tmp_path)
    run = write_run(tmp_path / "run", sets, lambda question: concluded(f"It is {question.index}."))
    (written,) = export_run(run, ExportFormat.VLMEVALKIT, run / "export")
    assert written.name == f"small_{TSV_NAMES[name]}.tsv"
    theirs = pandas.read_csv(path, sep="\t").drop(columns="image")
    mine = pandas.read_csv(written, sep="\t")
    assert mine.columns[0] == "index"
    assert mine.columns[-1] == "prediction"
    assert set(mine.columns) == {*theirs.columns, "prediction"}
    pandas.testing.assert_frame_equal(mine[theirs.columns], theirs)
    assert list(mine["prediction"]) == [f"It is {index}." for index in mine["index"]]


def test_a_file_for_the_server_of_mmbench(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench-test", mmbench_rows(answers=False))
    sets = open_sets("mmbench-test", tmp_path)
    run = write_run(tmp_path / "run", sets, lambda question: concluded('say "B"\tor\nC'))
    (written,) = export_run(run, ExportFormat.MMBENCH_SERVER, tmp_path / "out")
    table = pandas.read_csv(written, sep="\t")
    assert list(table.columns) == [
        *("index", "question", "hint", "A", "B", "C", "D"),
        *("category", "l2-category", "split", "prediction"),
    ]
    assert table["index"].dtype == "int64"
    assert list(table["index"]) == [row["index"] for row in mmbench_rows()]
    assert set(table["prediction"]) == {'say "B"\tor\nC'}


def test_a_rotation_that_was_not_asked_has_a_row(tmp_path: Path) -> None:
    write_set(tmp_path, "mmbench")
    sets = open_sets("mmbench", tmp_path)
    run = write_run(
        tmp_path / "run", sets, lambda question: None if question.rotation else concluded("Z")
    )
    (written,) = export_run(run, ExportFormat.VLMEVALKIT, tmp_path / "out")
    table = pandas.read_csv(written, sep="\t")
    assert len(table) == 160
    assert table["prediction"].isna().sum() == 120


def test_a_run_of_other_sets_is_not_for_the_server(tmp_path: Path) -> None:
    sets = open_sets("shapes", None, limit=2)
    run = write_run(tmp_path / "run", sets, lambda question: concluded("2"))
    with pytest.raises(UserError, match="the server scores mmbench and mmbench-test"):
        export_run(run, ExportFormat.MMBENCH_SERVER, tmp_path / "out")
