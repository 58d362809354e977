"""What a person gives as a model is taken as the folder or the id that it means."""

from __future__ import annotations

from pathlib import Path

import pytest

from llavacot_mlx.checkpoint.completeness import check_complete
from llavacot_mlx.checkpoint.model_name import ModelName, is_model_name, parse_model_name
from llavacot_mlx.errors import UserError


@pytest.mark.parametrize(
    ("text", "id", "revision"),
    [
        ("owner/name", "owner/name", None),
        ("owner/name/", "owner/name", None),
        ("  owner/name \n", "owner/name", None),
        ("'owner/name'", "owner/name", None),
        ("owner/name@v1.0", "owner/name", "v1.0"),
        ("https://huggingface.co/owner/name", "owner/name", None),
        ("https://huggingface.co/owner/name/", "owner/name", None),
        ("https://www.huggingface.co/owner/name.git", "owner/name", None),
        ("huggingface.co/owner/name", "owner/name", None),
        ("https://hf.co/owner/name?library=mlx#files", "owner/name", None),
        ("https://huggingface.co/owner/name/tree/main", "owner/name", "main"),
        ("https://huggingface.co/owner/name/blob/v2/config.json", "owner/name", "v2"),
        ("https://huggingface.co/owner/name/resolve/abc/model.safetensors", "owner/name", "abc"),
        ("https://huggingface.co/owner/name/tree/refs%2Fpr%2F3", "owner/name", "refs/pr/3"),
        ("https://huggingface.co/owner/name/tree/refs/pr/3", "owner/name", "refs/pr/3"),
        ("https://huggingface.co/owner/name/discussions", "owner/name", None),
        ("hf://owner/name", "owner/name", None),
        ("models--owner--my--name", "owner/my--name", None),
    ],
)
def test_what_means_an_id(text: str, id: str, revision: str | None) -> None:
    """An address, or a slash at the end, was "no such folder"."""
    assert parse_model_name(text) == ModelName(id=id, revision=revision)
    assert parse_model_name(str(parse_model_name(text))) == parse_model_name(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "name is empty"),
        ("  ", "name is empty"),
        ("nowhere", "no such folder"),
        ("./owner/name", "no such folder"),
        ("/tmp/nowhere/at/all", "no such folder"),
        ("~nobody-of-that-name/x", "no such folder"),
        ("a/b/c", "no such folder"),
        ("x\0y", "no such folder"),
        ("https://github.com/owner/name", "github.com is not the Hugging Face hub"),
        ("https://huggingface.co/datasets/owner/name", "a data set, not of a model"),
        ("https://huggingface.co/owner", "names no model"),
        ("owner/name@-x", "no name of a revision"),
    ],
)
def test_what_means_no_model(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_model_name(text)
    assert "\n" not in str(caught.value)
    assert not is_model_name(text)


def test_revisions() -> None:
    assert parse_model_name("owner/name", "v1").revision == "v1"
    assert parse_model_name("owner/name@v1", "v1").revision == "v1"
    with pytest.raises(UserError, match="names the revision v1, and --revision says v2"):
        parse_model_name("owner/name@v1", "v2")


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space or a slash at the end, quotes, and what a terminal makes of a dragged folder."""
    folder = tmp_path / "my model"
    folder.mkdir()
    for text in (
        f"{folder}/",
        f"{folder} ",
        f"'{folder}'",
        str(folder).replace(" ", "\\ "),
        f"file://{str(folder).replace(' ', '%20')}",
    ):
        assert parse_model_name(text).folder == folder, text
    with pytest.raises(UserError, match="is a folder"):
        parse_model_name(str(folder), "main")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=f"a file; .* give its folder, {folder}"):
        parse_model_name(str(folder / "config.json"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert parse_model_name("owner/name").folder == Path("owner/name")  # a folder comes first


def test_a_folder_of_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
    with pytest.raises(UserError, match="2 snapshots: give one of them"):
        parse_model_name(str(folder))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("b" * 40, encoding="utf-8")
    assert parse_model_name(str(folder)).folder == folder / "snapshots" / ("b" * 40)


def test_all_missing_files_are_told_at_once(folder: Path) -> None:
    """One missing file was named per run, and not where to take it from."""
    check_complete(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(
        config.replace("{", '{"_name_or_path": "owner/base",', 1), encoding="utf-8"
    )
    with pytest.raises(UserError) as caught:
        check_complete(folder)
    assert str(caught.value) == (
        f"{folder}: tokenizer.json and preprocessor_config.json are missing; take what is missing "
        "from owner/base"
    )
