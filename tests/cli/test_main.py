from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from mmprompt.cli import main as module
from mmprompt.cli.main import VERBS, main
from mmprompt.errors import UserError
from mmprompt.training.problem import RunFailed
from mmprompt.version import __version__

Capture = pytest.CaptureFixture[str]


def test_help_names_every_verb(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in VERBS)


@pytest.mark.parametrize("words", [[], ["-h"], ["help"], ["data", "--help"]])
def test_help_is_found_where_people_look(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    group = "data " if "data" in words else ""
    assert f"usage: mmprompt {group}VERB" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--help", "--version", "trian"])
def test_torch_is_not_imported_before_it_is_needed(words: str) -> None:
    code = (
        "import sys; from mmprompt.cli.main import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'PIL', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mmprompt", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mmprompt {__version__}\n"


def test_every_verb_is_there() -> None:
    for verb in VERBS.values():
        imported = module.importlib.import_module(f"mmprompt.{verb.module}")
        assert callable(getattr(imported, verb.function))


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: Capture) -> None:
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: mmprompt {name}" in shown
    assert not re.search(r"default:[\s│]*(None|False)?\)|\{None\}|\0", shown)


def test_help_says_a_default_where_there_is_one(capsys: Capture) -> None:
    main(["train", "--method", "coop", "--help"])
    shown = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert re.search(r"--n-ctx INT +Number of context vectors.*?\(default: +4\) +--ctx-init STR +Words", shown)


OUT_OF_MEMORY = (
    "mmprompt: error: memory ran out. Use a smaller --batch-size, fewer classes, or less of what is learned, such as a "
    "smaller --rank.\n"
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a is b. Do c."), 2, "mmprompt: error: a is b. Do c.\n"),
        (RunFailed("the loss became nan. Try less."), 1, "mmprompt: error: the loss became nan. Try less.\n"),
        (MemoryError(), 1, OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: of 8 bytes"), 1, OUT_OF_MEMORY),
    ],
)
def test_how_it_ends_decides_the_exit_code(
    error: Exception, code: int, said: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "dispatch", raiser(error))
    assert main(["train"]) == code
    assert capsys.readouterr() == ("", said)


def test_an_interruption_exits_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dispatch", raiser(KeyboardInterrupt()))
    assert main(["train"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_a_termination_keeps_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dispatch", raiser(SystemExit(143)))
    assert main(["train"]) == 143


def test_a_fault_of_ours_shows_where_it_is(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dispatch", raiser(ZeroDivisionError("oops")))
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_notes_of_the_library_are_lines_of_ours(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "dispatch", lambda _: logging.getLogger("mmprompt.training").warning("mind this"))
    assert main(["train"]) == 0
    assert capsys.readouterr().err == "mmprompt: note: mind this\n"
    assert logging.getLogger("mmprompt").propagate


def test_methods_list_is_one_json_document(capsys: Capture) -> None:
    assert main(["methods", "list", "--json"]) == 0
    shown = capsys.readouterr()
    assert {"coop", "vpt"} <= {method["name"] for method in json.loads(shown.out)}
    assert "--method coop+vpt" in shown.err


def test_methods_show_has_a_line_for_every_setting(capsys: Capture) -> None:
    assert main(["methods", "show", "coop+vpt", "--json"]) == 0
    coop, vpt = json.loads(capsys.readouterr().out)
    assert [setting["name"] for setting in coop["settings"]] == [
        "n_ctx",
        "ctx_init",
        "class_position",
        "class_specific",
    ]
    assert all(setting["help"] for setting in (*coop["settings"], *vpt["settings"]))


@pytest.mark.parametrize(
    ("name", "setting", "default"),
    [
        ("ivlp", "text_depth", "12, or all where fewer"),
        ("promptsrc", "text_depth", "9, or all where fewer"),
        ("promptsrc", "visual_depth", "9, or all where fewer"),
        ("coop", "n_ctx", "4 on tiny"),
        ("prograd", "n_ctx", "8 on tiny"),
    ],
)
def test_methods_show_says_what_a_method_has_by_default(name: str, setting: str, default: str, capsys: Capture) -> None:
    assert main(["methods", "show", name, "--json"]) == 0
    (method,) = json.loads(capsys.readouterr().out)
    assert default in next(each["help"] for each in method["settings"] if each["name"] == setting)


@pytest.mark.parametrize(
    ("name", "settings", "source"),
    [
        ("maple", {"lr": 0.0035, "batch_size": 4, "epochs": 5}, 'Khattak et al. 2023, "MaPLe", section 3.2'),
        ("kgcoop", {"batch_size": 128, "epochs": 100}, "Yao et al. 2023"),
        ("vpt", {"optimizer": "sgd", "lr": 0.002, "batch_size": 32}, "Zhou et al. 2022"),
        ("prompt-tuning", {"optimizer": "adamw", "lr": 0.03}, None),
    ],
)
def test_methods_show_has_the_recipe_and_where_it_is_from(
    name: str, settings: dict[str, object], source: str | None, capsys: Capture
) -> None:
    assert main(["methods", "show", name, "--json"]) == 0
    shown = capsys.readouterr()
    (method,) = json.loads(shown.out)
    assert settings.items() <= method["recipe"]["settings"].items()
    assert (source or "") in (method["recipe"]["source"] or "")
    assert (method["recipe"]["source"] is None) == (source is None)
    assert all(f"--{key.replace('_', '-')}" in shown.err for key in settings)


@pytest.mark.parametrize("name", ["knowledge-guided", "consistency", "aligned-gradient", "dp-sgd", "tpt"])
def test_methods_show_says_what_a_part_joins(name: str, capsys: Capture) -> None:
    assert main(["methods", "show", name, "--json"]) == 0
    shown = capsys.readouterr()
    (method,) = json.loads(shown.out)
    assert (method["joins"], method["recipe"]) == (f"coop+{name}", None)
    assert f"joins a method, which keeps its own recipe: --method coop+{name}." in shown.err


def test_methods_list_keeps_together_what_learns_the_same(capsys: Capture) -> None:
    assert main(["methods", "list", "--json"]) == 0
    groups = {method["name"]: method["group"] for method in json.loads(capsys.readouterr().out)}
    named = ["coop", "clip-lora", "gda", "tip-adapter-f", "tpt", "consistency", "zero-shot", "hard"]
    assert [groups[name] for name in named] == [
        *("prompts", "weights", "heads", "heads", "test time", "parts that join", "nothing learned", "nothing learned")
    ]
    order = list(dict.fromkeys(groups.values()))
    assert order == ["prompts", "weights", "heads", "test time", "parts that join", "nothing learned"]


def test_backbones_list_starts_with_the_embedded_one(capsys: Capture) -> None:
    assert main(["backbones", "list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert names[0]["name"] == "tiny"
    assert main(["backbones", "list", "--find", "vit-b-16/openai"]) == 0
    assert "open_clip:ViT-B-16/openai" in capsys.readouterr().out


def raiser(error: BaseException) -> Callable[[object], None]:
    """A function that raises."""

    def run(_: object) -> None:
        raise error

    return run
