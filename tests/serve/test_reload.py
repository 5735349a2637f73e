"""What changes in the folder while the server runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import httpx
import pytest

from mmprompt.errors import UserError
from mmprompt.serve.app import make_app
from mmprompt.serve.prompts import PromptFolder
from tests.fixtures.served_prompts import as_base64, running, save_classifier, wait_until


@pytest.fixture
def folder(served_folder: Path, tmp_path: Path) -> Path:
    for name in ("objects", "moods"):
        shutil.copytree(served_folder / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def loaded(folder: Path, prompts: PromptFolder) -> PromptFolder:
    """The folder, on the model that is in memory already."""
    loaded = PromptFolder(folder, "cpu")
    loaded.models = dict(prompts.models)
    loaded.refresh()
    assert sorted(loaded.prompts) == ["moods", "objects"]
    return loaded


def test_a_prompt_is_added_changed_and_removed_while_the_server_runs(
    loaded: PromptFolder, served_pictures: list[Path]
) -> None:
    image = as_base64(served_pictures[0])

    def labels(name: str) -> set[str]:
        response = httpx.post(f"{address}/images", json={"prompts": [name], "images": [image]})
        return set(response.json()["answers"][0]["probabilities"]) if response.status_code == 200 else set()

    with running(make_app(loaded, reload_s=0.02)) as address:
        assert labels("animals") == set()
        save_classifier(loaded.folder / "animals", 1, ["dog", "cat"])
        wait_until(lambda: labels("animals") == {"dog", "cat"})
        save_classifier(loaded.folder / "animals", 2, ["lynx", "ocelot"])
        wait_until(lambda: labels("animals") == {"lynx", "ocelot"})
        shutil.rmtree(loaded.folder / "animals")
        wait_until(lambda: labels("animals") == set())


@pytest.mark.parametrize("part", ["prompt.json", "prompt.safetensors"])
def test_a_broken_prompt_is_refused_in_one_line_and_the_one_before_it_stays(
    part: str, loaded: PromptFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = loaded.prompts["objects"]
    path = loaded.folder / "objects" / part
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    loaded.refresh()
    loaded.refresh()
    assert loaded.prompts["objects"] is before
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("objects is refused; the one before it stays in use: ")
    assert "\n" not in line
    path.write_bytes(whole)
    loaded.refresh()
    assert loaded.prompts["objects"] is not before
    assert loaded.refused == {}


def test_a_prompt_of_other_weights_is_refused(loaded: PromptFolder, run_folder: Path) -> None:
    shutil.copytree(run_folder, loaded.folder / "other")
    loaded.refresh()
    assert "this prompt was learned on" in loaded.refused["other"]
    assert sorted(loaded.prompts) == ["moods", "objects"]


def test_half_written_and_hidden_folders_and_files_are_no_prompts(loaded: PromptFolder) -> None:
    shutil.copytree(loaded.folder / "objects", loaded.folder / ".objects.12.tmp")
    (loaded.folder / "only_tensors").mkdir()
    shutil.copy(loaded.folder / "objects" / "prompt.safetensors", loaded.folder / "only_tensors")
    (loaded.folder / "notes.txt").write_text("no prompt")
    if os.name == "posix":
        shutil.copytree(loaded.folder / "objects", os.fsdecode(os.fsencode(loaded.folder) + b"/\xff\x1b[2J"))
    loaded.refresh()
    assert sorted(loaded.prompts) == ["moods", "objects"]
    assert loaded.refused == {}


def test_an_entry_that_cannot_be_looked_at_is_refused_and_the_others_are_served(loaded: PromptFolder) -> None:
    (loaded.folder / "loop").symlink_to("loop")
    shutil.copytree(loaded.folder / "objects", loaded.folder / "new")
    loaded.refresh()
    loaded.refresh()
    assert sorted(loaded.prompts) == ["moods", "new", "objects"]
    assert list(loaded.refused) == ["loop"]


def test_a_folder_that_is_gone_for_a_moment_changes_nothing(loaded: PromptFolder) -> None:
    away = loaded.folder.with_name("away")
    loaded.folder.rename(away)
    loaded.refresh()
    assert sorted(loaded.prompts) == ["moods", "objects"]
    away.rename(loaded.folder)


def test_whatever_a_header_does_the_others_stay(loaded: PromptFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmprompt.serve.prompts.read_header", lambda folder: json.loads("{}"))
    (loaded.folder / "moods" / "prompt.json").touch()
    loaded.refresh()
    assert loaded.refused == {"moods": "KeyError while it was loaded"}
    assert sorted(loaded.prompts) == ["moods", "objects"]


def test_a_folder_that_holds_no_prompts_is_no_mistake_but_one_that_is_none_is(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no folder"):
        PromptFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is itself a prompt"):
        PromptFolder(folder / "objects")
    empty = PromptFolder(tmp_path / "empty")
    empty.refresh()
    assert empty.prompts == {}
