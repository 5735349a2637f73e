"""What is no prompt in PEFT's files, or none that PEFT can hold: one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError
from mmprompt.language.peft import load_peft
from mmprompt.language.peft_save import save_peft
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.language_models import frozen_model
from tests.peft_models import N, ours, peft_model, saved

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it does itself


@pytest.fixture(scope="module")
def llama() -> FrozenLanguageModel:
    return frozen_model("llama")


def spoil_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_tensors(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def into_a_subfolder(folder: Path) -> None:
    (folder / "mine").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "mine" / name)


CONFIG, TENSORS = "FOLDER/adapter_config.json", "FOLDER/adapter_model.safetensors"
KNOWN = "PROMPT_TUNING, P_TUNING, PREFIX_TUNING, MULTITASK_PROMPT_TUNING, LORA"
AGAIN = "Save it again with PEFT's save_pretrained."
OTHER = "Load it with the model that it was trained on."
SPOILT: dict[str, tuple[str, Any, str]] = {
    "lora": (
        "prompt",
        lambda f: spoil_config(f, peft_type="LORA"),
        f"{CONFIG}: r is None, but a whole number of 1 or more was expected. {AGAIN}",
    ),
    "cpt": (
        "prompt",
        lambda f: spoil_config(f, peft_type="CPT"),
        f"{CONFIG}: has the peft_type 'CPT', but one of {KNOWN} was expected. Give a folder of those.",
    ),
    "no kind": (
        "prompt",
        lambda f: spoil_config(f, peft_type=None),
        f"{CONFIG}: has no peft_type, but one of {KNOWN} was expected. Give a folder of those.",
    ),
    "odd kind": (
        "prompt",
        lambda f: spoil_config(f, peft_type=["PROMPT_TUNING"]),
        f"{CONFIG}: has the peft_type \"['PROMPT_TUNING']\", but one of {KNOWN} was expected. Give a folder of those.",
    ),
    "classifier": (
        "prompt",
        lambda f: spoil_config(f, task_type="SEQ_CLS"),
        f"{CONFIG}: was trained for 'SEQ_CLS', but CAUSAL_LM or SEQ_2_SEQ_LM was expected. Only prompts of "
        "models that write text are read.",
    ),
    "encoder's": (
        "prompt",
        lambda f: spoil_config(f, task_type="SEQ_2_SEQ_LM"),
        f"FOLDER: is a prompt for SEQ_2_SEQ_LM, but llama is a model for CAUSAL_LM. {OTHER}",
    ),
    "head": (
        "prompt",
        lambda f: spoil_config(f, modules_to_save=["score"]),
        f"{CONFIG}: keeps modules of the model too (modules_to_save is ['score']). "
        "Only vectors and low-rank terms are read.",
    ),
    "no number": (
        "prompt",
        lambda f: spoil_config(f, num_virtual_tokens="three"),
        f"{CONFIG}: num_virtual_tokens is three, but a whole number of 1 or more was expected. " + AGAIN,
    ),
    "three copies": (
        "prompt",
        lambda f: spoil_config(f, num_transformer_submodules=3),
        f"{CONFIG}: num_transformer_submodules is 3, but 1 or 2 was expected. {AGAIN}",
    ),
    "broken": (
        "prompt",
        lambda f: (f / "adapter_config.json").write_text('{"peft_type":\n'),
        f"{CONFIG}, line 2: is not valid JSON. Restore the file as it was written.",
    ),
    "list": (
        "prompt",
        lambda f: (f / "adapter_config.json").write_text("[]"),
        f"{CONFIG}: is no JSON object. {AGAIN}",
    ),
    "no config": (
        "prompt",
        lambda f: (f / "adapter_config.json").unlink(),
        "FOLDER: holds no adapter_config.json, so it is no prompt of PEFT's. Give a folder that PEFT's save_pretrained "
        "wrote.",
    ),
    "subfolder": (
        "prompt",
        into_a_subfolder,
        "FOLDER: holds no adapter_config.json, so it is no prompt of PEFT's. Give FOLDER/mine.",
    ),
    "no tensors": (
        "prompt",
        lambda f: (f / "adapter_model.safetensors").unlink(),
        f"FOLDER: holds no adapter_model.safetensors. {AGAIN}",
    ),
    "pickle": (
        "prompt",
        only_a_pickle,
        "FOLDER: holds its tensors as a pickle alone (adapter_model.bin), which is never read. Save it again with "
        "PEFT's save_pretrained, which writes safetensors.",
    ),
    "cut file": (
        "prompt",
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"0123456789"),
        f"{TENSORS}: is not a readable safetensors file",
    ),
    "not finite": (
        "prompt",
        lambda f: spoil_tensors(f, prompt_embeddings=torch.full((N, 32), float("nan"))),
        f"{TENSORS}: holds NaN or infinity in 'prompt_embeddings'. Train again or restore the file.",
    ),
    "other name": (
        "prompt",
        lambda f: spoil_tensors(f, prompt_embeddings=None, embeddings=torch.zeros(N, 32)),
        f"{TENSORS}: holds no prompt_embeddings, which a PROMPT_TUNING prompt has. {AGAIN}",
    ),
    "more": (
        "prompt",
        lambda f: spoil_tensors(f, **{"base_model.score.weight": torch.zeros(2, 32)}),
        f"{TENSORS}: holds base_model.score.weight, which no PROMPT_TUNING prompt has. Give a folder of a "
        "prompt alone.",
    ),
    "rows": (
        "prompt",
        lambda f: spoil_tensors(f, prompt_embeddings=torch.zeros(4, 32)),
        f"{TENSORS}: prompt_embeddings is [4, 32] of float32, but [3, width] for 3 virtual tokens of "
        f"floating-point numbers was expected. {AGAIN}",
    ),
    "integers": (
        "prompt",
        lambda f: spoil_tensors(f, prompt_embeddings=torch.zeros(N, 32, dtype=torch.int64)),
        f"{TENSORS}: prompt_embeddings is [3, 32] of int64, but [3, width] for 3 virtual tokens of "
        f"floating-point numbers was expected. {AGAIN}",
    ),
    "width": (
        "prompt",
        lambda f: spoil_tensors(f, prompt_embeddings=torch.zeros(N, 48)),
        f"FOLDER: its vectors are 48 wide, but those of llama are 32. {OTHER}",
    ),
    "blocks": (
        "prefix",
        lambda f: (
            spoil_config(f, num_layers=3),
            spoil_tensors(f, prompt_embeddings=torch.zeros(N, 96)),
        ),
        "FOLDER: holds keys and values of num_layers 3, but llama takes 64 numbers: 2 blocks, 2 heads of width 8, keys "
        f"and values. {OTHER}",
    ),
    "heads": (
        "prefix",
        lambda f: spoil_config(f, num_attention_heads=4),
        "FOLDER: holds keys and values of num_attention_heads 4, but llama takes 64 numbers: 2 blocks, 2 heads of "
        f"width 8, keys and values. {OTHER}",
    ),
    "numbers": (
        "prefix",
        lambda f: spoil_tensors(f, prompt_embeddings=torch.zeros(N, 60)),
        "FOLDER: holds keys and values of 60 numbers, but llama takes 64 numbers: 2 blocks, 2 heads of width 8, keys "
        f"and values. {OTHER}",
    ),
    "no factors": (
        "multitask",
        lambda f: spoil_tensors(f, prefix_task_rows=None),
        f"{TENSORS}: holds no prefix_task_rows, which a MULTITASK_PROMPT_TUNING prompt has. {AGAIN}",
    ),
    "columns": (
        "multitask",
        lambda f: spoil_tensors(f, prefix_task_cols=torch.zeros(2, 4, 2)),
        f"{TENSORS}: prefix_task_cols is [2, 4, 2] of float32, but [tasks, 3, rank] of floating-point "
        f"numbers was expected. {AGAIN}",
    ),
    "factors": (
        "multitask",
        lambda f: spoil_tensors(f, prefix_task_rows=torch.zeros(2, 1, 32)),
        f"{TENSORS}: prefix_task_rows is [2, 1, 32] of float32, but [2, 2, 32] of floating-point numbers "
        f"was expected. {AGAIN}",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_folder_that_is_no_prompt_of_the_model_is_refused(
    llama: FrozenLanguageModel, what: str, tmp_path: Path
) -> None:
    name, spoil, message = SPOILT[what]
    spoil(saved(peft_model(llama, name), tmp_path))
    assert refusal(tmp_path, load_peft, tmp_path, llama).startswith(message)


def refusal(folder: Path, call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(folder), "FOLDER")


def test_a_missing_folder_is_refused(llama: FrozenLanguageModel, tmp_path: Path) -> None:
    text = refusal(tmp_path, load_peft, tmp_path / "none", llama)
    assert text.startswith("FOLDER/none: holds no adapter_config.json, so it is no prompt of PEFT's.")


def test_a_prefix_that_hides_the_text_from_the_decoder_is_refused(tmp_path: Path) -> None:
    model = frozen_model("t5")
    saved(peft_model(model, "prefix", num_transformer_submodules=1), tmp_path)
    assert "num_transformer_submodules 1" in refusal(tmp_path, load_peft, tmp_path, model)


@pytest.mark.parametrize(
    ("name", "template", "message"),
    [
        ("prompt", "{bos}{text}{answer}", "holds 3 vectors among the tokens, but the template has 0 soft slots"),
        (
            "prompt",
            "{soft*2}{bos}{text}{answer}",
            "holds 3 vectors among the tokens, but the template has 2 soft slots",
        ),
        (
            "prompt",
            "{soft*4}{bos}{text}{answer}",
            "holds 3 vectors among the tokens, but the template has 4 soft slots",
        ),
        (
            "prefix",
            "{soft*4}{bos}{text}{answer}",
            "holds 0 vectors among the tokens, but the template has 4 soft slots",
        ),
    ],
)
def test_a_template_with_another_number_of_vectors_is_refused(
    llama: FrozenLanguageModel, name: str, template: str, message: str, tmp_path: Path
) -> None:
    saved(peft_model(llama, name), tmp_path)
    assert message in refusal(tmp_path, load_peft, tmp_path, llama, template)


def test_tasks_that_are_not_there_are_refused(llama: FrozenLanguageModel, tmp_path: Path) -> None:
    saved(peft_model(llama, "multitask"), tmp_path / "multitask")
    assert "no task named '2'. Known: 0, 1." in refusal(tmp_path, load_peft, tmp_path / "multitask", llama, task=2)
    saved(peft_model(llama, "prompt"), tmp_path / "prompt")
    assert "is a prompt of one task" in refusal(tmp_path, load_peft, tmp_path / "prompt", llama, task=0)
    assert "no task named 'x'" in refusal(tmp_path, save_peft, ours(llama, "multitask"), tmp_path / "out", task="x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: spoil_tensors(f, prompt_embeddings=torch.zeros(N, 32)), "was written with another"),
        (lambda f: (f / "mmprompt.json").write_text("[]"), "mmprompt.json: is no JSON object"),
        (lambda f: spoil_side(f, format=2), "mmprompt.json: has format 2, but this mmprompt"),
        (lambda f: spoil_side(f, format="1"), "mmprompt.json: format is '1', but"),
        (lambda f: spoil_side(f, formatt=1), "mmprompt.json: there is no key named 'formatt'"),
        (lambda f: spoil_side(f, tasks=["one"]), "mmprompt.json: names 1 tasks, but there are 2. Name each."),
        (lambda f: spoil_side(f, template="{soft}"), "there is no {answer}"),
    ],
)
def test_a_side_file_that_does_not_fit_is_refused(
    llama: FrozenLanguageModel, spoil: Any, message: str, tmp_path: Path
) -> None:
    save_peft(ours(llama, "multitask"), tmp_path)
    spoil(tmp_path)
    assert message in refusal(tmp_path, load_peft, tmp_path, llama)


def spoil_side(folder: Path, **changes: Any) -> None:
    path = folder / "mmprompt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_compiled_vectors_that_were_changed_are_refused(llama: FrozenLanguageModel, tmp_path: Path) -> None:
    save_peft(ours(llama, "prompt"), tmp_path, kind="prefix")
    save_file({"lm.input": torch.zeros(N, 32)}, tmp_path / "mmprompt.safetensors")
    assert "was changed after it was saved" in refusal(tmp_path, load_peft, tmp_path, llama)


def test_our_prompt_on_other_weights_is_refused(llama: FrozenLanguageModel, tmp_path: Path) -> None:
    save_peft(ours(llama, "prompt"), tmp_path)
    assert "this prompt was learned on llama" in refusal(tmp_path, load_peft, tmp_path, frozen_model("gpt2"))


@pytest.mark.parametrize(
    ("template", "problem", "advice"),
    [
        (
            "{soft} {text} {answer}",
            "'<s>' stands before some",
            "Use `kind='prefix'`, which compiles what stands there.",
        ),
        (
            "{text}{soft} {answer}",
            "a field stands before some",
            "Train it with a template that begins with {soft}{bos}.",
        ),
        (
            "{soft*3:a}{soft:a}{bos}{text}{answer}",
            "some stand twice",
            "Use `kind='prefix'`, which compiles what stands there.",
        ),
    ],
)
def test_vectors_that_do_not_stand_in_front_are_refused(
    llama: FrozenLanguageModel, template: str, problem: str, advice: str, tmp_path: Path
) -> None:
    text = refusal(tmp_path, save_peft, ours(llama, "prompt", template), tmp_path / "out")
    begin = "PEFT puts the vectors of a prompt before everything, each once, but in this template"
    assert text == f"{begin} {problem}. {advice}"
    assert not (tmp_path / "out").exists()


def test_what_peft_cannot_hold_is_refused(llama: FrozenLanguageModel, tmp_path: Path) -> None:
    t5 = frozen_model("t5")
    hard = LanguagePredictor(llama, Prompt(Template.parse("It is {text} {answer}")))
    soft, prefix = ours(llama, "prompt"), ours(llama, "prefix")
    both = LanguagePredictor(
        llama, Prompt(soft.template, *soft.prompt.sources, *prefix.prompt.sources), soft.label_words
    )
    for prompted, more, message in (
        (hard, {}, "a prompt in words alone has no vectors"),
        (hard, {"kind": "prefix"}, "a prompt in words alone has no vectors"),
        (both, {}, "has vectors among the tokens beside keys and values"),
        (
            ours(llama, "multitask"),
            {"kind": "prefix"},
            "a prefix is of one task, but this prompt has 2. Give the task.",
        ),
        (ours(llama, "prompt", "{text}{soft} {answer}"), {"kind": "prefix"}, "a field stands before some"),
        (ours(t5, "prompt"), {"kind": "prefix"}, "the encoder of t5 reads vectors and text in both directions"),
    ):
        assert message in refusal(tmp_path, save_peft, prompted, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
