"""Prompts in PEFT's files, both ways, against the installed PEFT: the same logits, tokens, loss and gradient."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmprompt.backbones.language.generation import Generation, before_end, generate
from mmprompt.backbones.language.model import FrozenLanguageModel
from mmprompt.backbones.language.packing import Question
from mmprompt.backbones.language.vectors import LM_INPUT
from mmprompt.data.texts import TextRow
from mmprompt.predictors.language import PromptedModel
from mmprompt.predictors.language_generation import jobs_of
from mmprompt.predictors.peft_file import load_peft
from tests.language_models import CAUSAL, ENCODED, frozen_model

N = 3
TEXTS = ("a red car", "the happy dog", "a photo of the blue house")
CONFIGS: dict[str, Any] = {
    "prompt": lambda **more: peft.PromptTuningConfig(num_virtual_tokens=N, **more),
    "mlp": lambda **more: peft.PromptEncoderConfig(num_virtual_tokens=N, encoder_hidden_size=16, **more),
    "lstm": lambda **more: peft.PromptEncoderConfig(
        num_virtual_tokens=N, encoder_hidden_size=16, encoder_reparameterization_type="LSTM", **more
    ),
    "prefix": lambda **more: peft.PrefixTuningConfig(num_virtual_tokens=N, **more),
    "projected": lambda **more: peft.PrefixTuningConfig(
        num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=16, **more
    ),
    "multitask": lambda **more: peft.MultitaskPromptTuningConfig(
        num_virtual_tokens=N, num_tasks=2, num_ranks=2, **more
    ),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module", params=[*CAUSAL, *ENCODED])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


@pytest.fixture(autouse=True)
def quiet_peft() -> Iterator[None]:
    """PEFT warns of what it does itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_model(model: FrozenLanguageModel, name: str, **more: Any) -> Any:
    """PEFT's model with a random prompt large enough to matter; the frozen weights are shared with ours."""
    task_type = "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM"
    torch.manual_seed(5)
    built = peft.get_peft_model(model.lm, CONFIGS[name](task_type=task_type, **more)).eval()
    for parameter in built.prompt_encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return built


def saved(built: Any, folder: Path) -> Path:
    built.save_pretrained(folder)
    return folder


def again(model: FrozenLanguageModel, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(model.lm, folder).eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def tolerance_of(name: str, model: FrozenLanguageModel) -> float:
    """PEFT multiplies the factors of a task in float32, in another order than one task alone is."""
    return 1e-5 if name == "multitask" else TOLERANCE[model.dtype]


def tokens_of(model: FrozenLanguageModel, text: str) -> list[int]:
    return model.tokenizer(text)["input_ids"]


ANSWER = (5, 40, 7)


def peft_logits(model: FrozenLanguageModel, built: Any, ids: Sequence[int], **more: Any) -> Tensor:
    """[3, V], what PEFT predicts at the three tokens of an answer."""
    read = ids if model.is_encoder_decoder else [*ids, *ANSWER[:-1]]
    given = {"labels": torch.tensor([ANSWER])} if model.is_encoder_decoder else {}
    inputs = {"input_ids": torch.tensor([read]), "attention_mask": torch.ones(1, len(read))}
    return built(**inputs, **given, **more).logits[0, -len(ANSWER) :]


def our_logits(prompted: PromptedModel, slots: Sequence[int], task: str = "") -> Tensor:
    """The same, of slots; what an encoder's text ends with is put there by the model's reader."""
    predicted = prompted.model.predict(prompted.prompt.sources.vectors_of(task), [Question(tuple(slots), (ANSWER,))])
    return predicted.logits[predicted.at]


def peft_tokens(model: FrozenLanguageModel, built: Any, ids: Sequence[int], **more: Any) -> tuple[int, ...]:
    """What PEFT writes, greedily, token by token by its own forward: what its `generate` (0.21.2) says under
    transformers 5.24 is something else.
    """
    found: list[int] = []
    while len(found) < 8 and model.end_id not in found:
        read = torch.tensor([[*ids] if model.is_encoder_decoder else [*ids, *found]])
        given = {"labels": torch.tensor([[*found, 5]])} if model.is_encoder_decoder else {}  # the last is not read
        logits = built(input_ids=read, attention_mask=torch.ones(read.shape), **given, **more).logits[0, -1]
        if not found:
            logits[model.end_id] = -torch.inf  # one token at least
        found.append(int(logits.argmax()))
    return before_end(found, model.end_id)


def our_tokens(prompted: PromptedModel, text: str, task: str = "") -> tuple[int, ...]:
    jobs = jobs_of([prompted], [TextRow({"text": text}, task=task)], 8)
    return generate(prompted.model, jobs, Generation(max_tokens=8))[0]


def same_as_peft(prompted: PromptedModel, built: Any, tolerance: float) -> None:
    """The same logits and greedy tokens for the texts, as the tokenizer frames them."""
    model = prompted.model
    for task in prompted.prompt.sources.tasks or ("",):
        number = prompted.prompt.sources.tasks.index(task) if task else 0
        more = {"task_ids": torch.tensor([number])} if task else {}
        for text in TEXTS:
            ids = model.tokenizer(text)["input_ids"]
            slots = prompted.question({"text": text}, (ANSWER,)).slots
            close(our_logits(prompted, slots, task), peft_logits(model, built, ids, **more), tolerance)
            assert our_tokens(prompted, text, task) == peft_tokens(model, built, ids, **more)


# --- from PEFT


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_folder_of_pefts_gives_the_same_logits_and_tokens(
    model: FrozenLanguageModel, name: str, tmp_path: Path
) -> None:
    more = {"num_transformer_submodules": 1} if name == "multitask" else {}
    built = again(model, saved(peft_model(model, name, **more), tmp_path))
    same_as_peft(load_peft(tmp_path, model), built, tolerance_of(name, model))


@pytest.mark.parametrize("name", ["prompt", "mlp", "prefix", "multitask"])
@torch.no_grad()
def test_single_precision_gives_the_same_too(kind: str, name: str, tmp_path: Path) -> None:
    model = frozen_model(kind, torch.float32)
    more = {"num_transformer_submodules": 1} if name == "multitask" else {}
    built = again(model, saved(peft_model(model, name, **more), tmp_path))
    prompted = load_peft(tmp_path, model)
    task = "1" if name == "multitask" else ""
    more = {"task_ids": torch.tensor([1])} if task else {}
    for text in TEXTS:
        slots = prompted.question({"text": text}, (ANSWER,)).slots
        expected = peft_logits(model, built, model.tokenizer(text)["input_ids"], **more)
        close(our_logits(prompted, slots, task), expected, 1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_token_ids_are_read_after_the_vectors_as_they_are(model: FrozenLanguageModel, tmp_path: Path) -> None:
    built = again(model, saved(peft_model(model, "prompt"), tmp_path))
    ids = [9, 30, 31, 8]
    behind = model.reader.behind if model.is_encoder_decoder else ()
    expected = peft_logits(model, built, [*ids, *behind])
    close(our_logits(load_peft(tmp_path, model), (-1, -2, -3, *ids)), expected)


@pytest.mark.parametrize("kind", ENCODED, indirect=True)
@pytest.mark.parametrize("name", ["prompt", "mlp"])
@torch.no_grad()
def test_vectors_stand_once_or_twice_in_the_file(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    for copies in (1, 2):
        folder = saved(peft_model(model, name, num_transformer_submodules=copies), tmp_path / str(copies))
        assert load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].shape[0] == copies * N
        same_as_peft(load_peft(folder, model), again(model, folder), TOLERANCE[model.dtype])


@pytest.mark.parametrize("kind", ["t5"], indirect=True)
@torch.no_grad()
def test_of_several_tasks_behind_an_encoder_it_is_said_which_half_is_read(
    model: FrozenLanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = peft_model(model, "multitask")
    prompted = load_peft(saved(built, tmp_path), model)
    assert "generates without them" in caplog.text
    whole = built.prompt_encoder["default"].embedding.weight
    close(prompted.prompt.sources.vectors()[LM_INPUT].values, whole[:N])


@pytest.mark.parametrize("kind", ["t5"], indirect=True)
@torch.no_grad()
def test_a_prefix_behind_an_encoder_reaches_the_blocks_that_pefts_reaches(
    model: FrozenLanguageModel, tmp_path: Path
) -> None:
    for n_blocks in (1, 3, 5):  # of the file; the decoder has two
        folder = saved(peft_model(model, "prefix", num_layers=n_blocks), tmp_path / str(n_blocks))
        if n_blocks > 1:  # else PEFT has a prefix for one block alone
            same_as_peft(load_peft(folder, model), again(model, folder), TOLERANCE[model.dtype])


@torch.no_grad()
def test_one_task_of_several_is_taken_by_number_or_name(model: FrozenLanguageModel, tmp_path: Path) -> None:
    saved(peft_model(model, "multitask", num_transformer_submodules=1), tmp_path)
    every = load_peft(tmp_path, model)
    slots = every.question({"text": TEXTS[0]}, (ANSWER,)).slots
    for task in (1, "1"):
        one = load_peft(tmp_path, model, task=task)
        assert one.prompt.sources.tasks == ()
        assert torch.equal(our_logits(one, slots), our_logits(every, slots, "1"))


@pytest.mark.parametrize("name", ["prompt", "prefix", "multitask"])
def test_loss_and_gradient_of_a_step_are_pefts(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    more = {"num_transformer_submodules": 1} if name == "multitask" else {}
    built = peft_model(model, name, **more)
    prompted = load_peft(saved(built, tmp_path), model)
    built.prompt_encoder.double()
    sources = prompted.prompt.sources.double().requires_grad_(True)
    task = "1" if name == "multitask" else ""
    answers = (ANSWER, (6,), (80, 8))
    batch = right_padded(model, TEXTS, answers) | ({"task_ids": torch.tensor([1] * 3)} if task else {})
    out = built(**batch)
    logits, labels = shifted(model, out.logits, batch["labels"])
    expected = F.cross_entropy(logits, labels)
    expected.backward()
    questions = [prompted.question({"text": t}, (a,)) for t, a in zip(TEXTS, answers, strict=True)]
    loss = -model.predict(sources.vectors_of(task), questions).token_log_probs().mean()
    loss.backward()
    close(loss, expected, 1e-6)  # norms are single precision
    close(loss, out.loss, 1e-5)  # PEFT's own, which transformers computes in float32
    theirs = {n.removeprefix("default."): p.grad for n, p in built.prompt_encoder.named_parameters()}
    if name == "prefix" and model.is_encoder_decoder:  # two blocks share what PEFT has for one
        own = sum(source.values.grad for source in sources.sources)
        close(own, theirs["embedding.weight"][:, : own.shape[1]], 1e-6)  # norms are single precision
        assert not theirs["embedding.weight"][:, own.shape[1] :].any()
    else:
        own = torch.cat([source.values.grad for source in sources.sources], dim=1)
        close(own, theirs["embedding.weight"][:N], 1e-6)  # norms are single precision
        assert not theirs["embedding.weight"][N:].any()
    if task:
        close(sources.columns.grad, theirs["prefix_task_cols"], 1e-6)  # norms are single precision
        close(sources.rows.grad, theirs["prefix_task_rows"], 1e-6)  # norms are single precision


def right_padded(
    model: FrozenLanguageModel, texts: Sequence[str], answers: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """A batch as PEFT is trained with it."""
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    wanted = [list(answer) for answer in answers]
    if not model.is_encoder_decoder:
        wanted = [[-100] * len(row) + answer for row, answer in zip(rows, wanted, strict=True)]
        rows = [[*row, *answer] for row, answer in zip(rows, answers, strict=True)]

    def padded(some: Sequence[Sequence[int]], filling: int) -> Tensor:
        length = max(map(len, some))
        return torch.tensor([[*row, *[filling] * (length - len(row))] for row in some])

    mask = padded([[1] * len(row) for row in rows], 0)
    return {"input_ids": padded(rows, model.pad_id), "attention_mask": mask, "labels": padded(wanted, -100)}


def shifted(model: FrozenLanguageModel, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the tokens that they are to predict, flat."""
    if not model.is_encoder_decoder:
        logits, labels = logits[:, -labels.shape[1] : -1], labels[:, 1:]
    return logits.flatten(0, 1), labels.flatten()
