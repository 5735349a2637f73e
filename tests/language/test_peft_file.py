"""Prompts that PEFT wrote, against the installed PEFT: the same logits, tokens, loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmprompt.language.peft import load_peft
from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.language_models import ENCODED, frozen_model
from tests.peft_models import (
    ANSWER,
    CONFIGS,
    TEXTS,
    TOLERANCE,
    N,
    again,
    close,
    our_logits,
    our_tokens,
    peft_generates,
    peft_logits,
    peft_model,
    same_as_peft,
    saved,
    tolerance_of,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it does itself


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
def test_of_several_tasks_behind_an_encoder_the_half_that_generates_is_read(
    model: FrozenLanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = again(model, saved(peft_model(model, "multitask"), tmp_path))
    prompted = load_peft(tmp_path, model)
    assert f"PEFT trains {N} vectors before the decoder's tokens too, but generates without them" in caplog.text
    assert "Scores of labels differ from those of PEFT's forward" in caplog.text
    ids = model.tokenizer(TEXTS[0])["input_ids"]
    assert our_tokens(prompted, TEXTS[0], "1") == peft_generates(model, built, ids, task_ids=torch.tensor([1]))


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
        assert one.tasks == ()
        assert torch.equal(our_logits(one, slots), our_logits(every, slots, "1"))


@pytest.mark.parametrize("name", ["prompt", "prefix", "multitask"])
def test_loss_and_gradient_of_a_step_are_pefts(model: FrozenLanguageModel, name: str, tmp_path: Path) -> None:
    more = {"num_transformer_submodules": 1} if name == "multitask" else {}
    built = peft_model(model, name, **more)
    prompted = load_peft(saved(built, tmp_path), model)
    built.prompt_encoder.double()
    tolerance = 1e-10 if model.name in ("gpt2", "opt", "bart") else 1e-6  # norms of the others are in float32
    sources = prompted.prompt.double().requires_grad_(True).sources
    task = "1" if name == "multitask" else ""
    answers = (ANSWER, (6,), (80, 8))
    batch = right_padded(model, TEXTS, answers) | ({"task_ids": torch.tensor([1] * 3)} if task else {})
    out = built(**batch)
    logits, labels = shifted(model, out.logits, batch["labels"])
    expected = F.cross_entropy(logits, labels)
    expected.backward()
    questions = [prompted.question({"text": t}, (a,)) for t, a in zip(TEXTS, answers, strict=True)]
    loss = -model.predict(prompted.vectors(task), questions).token_log_probs().mean()
    loss.backward()
    close(loss, expected, tolerance)
    close(loss, out.loss, 1e-5)  # PEFT's own, which transformers computes in float32
    theirs = {n.removeprefix("default."): p.grad for n, p in built.prompt_encoder.named_parameters()}
    if name == "prefix" and model.is_encoder_decoder:  # two blocks share what PEFT has for one
        own = sum(source.values.grad for source in sources)
        close(own, theirs["embedding.weight"][:, : own.shape[1]], tolerance)
        assert not theirs["embedding.weight"][:, own.shape[1] :].any()
    else:
        own = torch.cat([source.values.grad for source in sources], dim=1)
        close(own, theirs["embedding.weight"][:N], tolerance)
        assert not theirs["embedding.weight"][N:].any()
    if task:
        close(sources[0].columns.grad, theirs["prefix_task_cols"], tolerance)
        close(sources[0].rows.grad, theirs["prefix_task_rows"], tolerance)


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


@pytest.mark.parametrize("kind", ["llama"], indirect=True)
def test_a_template_that_puts_vectors_elsewhere_than_peft_is_warned_of(
    model: FrozenLanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(peft_model(model, "prompt"), tmp_path)
    load_peft(tmp_path, model, "{soft}{bos}{text} {answer}")
    assert not caplog.records
    load_peft(tmp_path, model, "{soft} {text} {answer}")
    assert "PEFT puts its vectors before everything" in caplog.text
