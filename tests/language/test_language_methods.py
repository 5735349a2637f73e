"""What each method learns, where it starts, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.core.learned import Given, Prompt
from mmprompt.core.method import Start, settled
from mmprompt.core.soft import DecoderMethod
from mmprompt.errors import UserError
from mmprompt.language.methods import (
    METHODS,
    DeepPrompts,
    HardPrompt,
    MultitaskPrompt,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.sites import Site, Vectors, vectors_of
from tests.language_models import frozen_model, prompt_from

LM_INPUT = Site("lm")
WORDS = torch.tensor([40, 41, 42])
KINDS = ("llama", "opt_narrow", "bart", "t5_wide")
AMONG_TOKENS = (
    PromptTuning(3),
    PTuning(3, hidden=8),
    PTuning(3, encoder="lstm", hidden=8),
    MultitaskPrompt(3),
    MultitaskPrompt(3, rank=2),
)
PREFIXES = (PrefixTuning(3, hidden=8), PrefixTuning(3, reparametrise=False), DeepPrompts(3))


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind, torch.float32)


def prompt_of(method: DecoderMethod, kind: str = "llama") -> tuple[Prompt, Tensor]:
    model = model_of(kind)
    start = model.embed(WORDS)
    torch.manual_seed(0)
    return prompt_from(method, model, start, ("one", "two")), start


def tasks_of(prompt: Prompt) -> tuple[str, ...]:
    return prompt.sources[0].tasks or ("",)


def given_by(prompt: Prompt, task: str = "") -> dict[Site, Vectors]:
    return vectors_of(prompt.inserts(given=Given(task=task)))


def step(prompt: Prompt, model: FrozenLanguageModel, task: str = "", lr: float = 0.1) -> None:
    """One step of plain gradient descent on an answer."""
    slots = (-1, -2, -3, 7, 8) if prompt.has("lm") else (7, 8)
    loss = -model.predict(given_by(prompt, task), [Question(slots, ((9, 10),))]).token_log_probs().sum()
    loss.backward()
    with torch.no_grad():
        for parameter in prompt.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", AMONG_TOKENS, ids=str)
def test_vectors_among_the_tokens_start_where_they_are_told_to(method: DecoderMethod, kind: str) -> None:
    prompt, start = prompt_of(method, kind)
    for task in tasks_of(prompt):
        (vectors,) = given_by(prompt, task).values()
        torch.testing.assert_close(vectors.values, start, rtol=1e-6, atol=1e-7)
        model_of(kind).check_inserts(given_by(prompt, task))
    if isinstance(method, PTuning):
        assert torch.equal(given_by(prompt)[LM_INPUT].values, start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", PREFIXES, ids=str)
def test_a_prefix_starts_as_the_keys_and_values_of_the_words(method: PrefixTuning, kind: str) -> None:
    model = model_of(kind)
    prompt, start = prompt_of(method, kind)
    pairs = model.reader.keys_values_of(start)
    assert len(given_by(prompt)) == len(pairs)
    for layer, pair in enumerate(pairs):
        expected = torch.cat([part[0].transpose(0, 1).flatten(1) for part in pair], 1)  # [M, 2 H D/H]
        found = given_by(prompt)[Site("lm.kv", layer)].values
        if method.reparametrise is not False:
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", PREFIXES, ids=str)
def test_before_it_learns_a_prefix_of_words_reads_as_the_words(method: PrefixTuning) -> None:
    model = model_of("llama")
    prompt, _ = prompt_of(method)
    found = model.predict(given_by(prompt), [Question((7, 8), ((9, 10),))]).token_log_probs()
    expected = model.predict({}, [Question((40, 41, 42, 7, 8), ((9, 10),))]).token_log_probs()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [*AMONG_TOKENS, *PREFIXES], ids=str)
def test_all_that_learns_gets_a_gradient_and_the_model_none(method: DecoderMethod) -> None:
    model = model_of("llama")
    prompt, _ = prompt_of(method)
    for _ in range(2):  # what stands before a layer of zeros moves from the second step on
        for task in tasks_of(prompt):
            step(prompt, model, task)
    before = {name: value.clone() for name, value in prompt.named_parameters()}
    for task in tasks_of(prompt):
        step(prompt, model, task)
    assert [name for name, value in prompt.named_parameters() if torch.equal(value, before[name])] == []
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def test_vectors_are_learned_in_units_of_the_embeddings() -> None:
    model = model_of("llama")
    prompt, start = prompt_of(PromptTuning(3))
    (values,) = prompt.parameters()
    torch.testing.assert_close(values * model.embedding_rms, start)
    huge = prompt_from(PromptTuning(3), model, 1000 * start)  # a start of any size is learned in the same units
    torch.testing.assert_close(next(huge.parameters()) * model.embedding_rms, 1000 * start)


def test_keys_and_values_are_learned_in_units_of_their_own() -> None:
    prompt, start = prompt_of(DeepPrompts(3))
    for (key, value), (_, learned) in zip(
        model_of("llama").reader.keys_values_of(start), sorted(prompt.named_parameters()), strict=True
    ):
        half = learned.shape[1] // 2
        for part, own in ((key, learned[:, :half]), (value, learned[:, half:])):
            expected = part[0].transpose(0, 1).flatten(1)
            torch.testing.assert_close(own * expected.square().mean().sqrt(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_tasks_start_alike_and_go_their_own_ways(rank: int) -> None:
    model = model_of("llama")
    prompt, _ = prompt_of(MultitaskPrompt(3, rank=rank))
    assert tasks_of(prompt) == ("one", "two")
    one, two = (given_by(prompt, task)[LM_INPUT].values for task in tasks_of(prompt))
    assert torch.equal(one, two)
    step(prompt, model, "one")
    one, two = (given_by(prompt, task)[LM_INPUT].values for task in tasks_of(prompt))
    assert (one - two).abs().max() > 1e-4


def test_a_task_learns_a_matrix_of_its_whole_rank() -> None:
    prompt, _ = prompt_of(MultitaskPrompt(3, rank=3))
    for _ in range(2):
        step(prompt, model_of("llama"), "one")
    (source,) = prompt.sources
    assert isinstance(source, MultitaskVectors)
    assert torch.linalg.matrix_rank(source.columns[0] @ source.rows[0]) == 3
    assert torch.linalg.matrix_rank(source.columns[1] @ source.rows[1]) == 1, "the other has learned nothing"


def test_tasks_that_are_not_named_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        prompt_from(MultitaskPrompt(3), model_of("llama"), torch.zeros(3, 32))
    assert str(caught.value) == (
        'multitask needs rows of several tasks, but these name none. Write "task" in every row.'
    )


def test_words_alone_learn_nothing() -> None:
    prompt, _ = prompt_of(HardPrompt())
    assert list(prompt.parameters()) == []
    assert given_by(prompt) == {}


def test_a_prefix_is_refused_where_blocks_differ() -> None:
    model = frozen_model("llama")
    model.kv_shape = None
    with pytest.raises(UserError) as caught:
        prompt_from(PrefixTuning(3), model, torch.zeros(3, 32))
    assert str(caught.value) == (
        "llama takes no keys and values of a prompt in its blocks, but prefix tuning learns some. Use prompt-tuning."
    )


def test_words_that_a_template_does_not_hold_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        prompt_from(HardPrompt("in a word"), model_of("llama"), torch.zeros(0, 32))
    assert str(caught.value) == (
        "words is 'in a word', but those of a language model stand in its template. Write them into the template."
    )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            PromptTuning,
            {"n_soft": 0},
            "n_soft is 0, but it must be a whole number from 1 to 1024. Leave `n_soft` out for the default.",
        ),
        (
            PTuning,
            {"n_soft": 0},
            "n_soft is 0, but it must be a whole number from 1 to 1024. Leave `n_soft` out for the default.",
        ),
        (PTuning, {"encoder": "gru"}, "there is no encoder named 'gru'. Known: lstm, mlp."),
        (PTuning, {"hidden": 7}, "hidden is 7, but it must be an even number. Use `hidden=256`."),
        (
            PTuning,
            {"hidden": 0},
            "hidden is 0, but it must be a whole number from 1 to 16384. Leave `hidden` out for the default.",
        ),
        (
            PrefixTuning,
            {"n_prefix": 0},
            "n_prefix is 0, but it must be a whole number from 1 to 1024. Leave `n_prefix` out for the default.",
        ),
        (
            DeepPrompts,
            {"n_prefix": -1},
            "n_prefix is -1, but it must be a whole number from 1 to 1024. Leave `n_prefix` out for the default.",
        ),
        (
            PrefixTuning,
            {"hidden": 0},
            "hidden is 0, but it must be a whole number from 1 to 16384. Leave `hidden` out for the default.",
        ),
        (
            MultitaskPrompt,
            {"rank": 0},
            "rank is 0, but it must be a whole number from 1 to 16384. Leave `rank` out for the default.",
        ),
        (
            MultitaskPrompt,
            {"n_soft": 0},
            "n_soft is 0, but it must be a whole number from 1 to 1024. Leave `n_soft` out for the default.",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        kind(**settings)
    assert str(caught.value) == message


def test_every_method_says_how_many_vectors_it_asks_for() -> None:
    n_asked: list[int] = []

    def keys_values(n: int) -> list[tuple[Tensor, Tensor]]:
        n_asked.append(n)
        return [(torch.zeros(n, 8), torch.ones(8))]

    found = {}
    for name, kind in METHODS.items():
        given = Start(
            torch.Generator(),
            Template.parse("{answer}"),
            templates=["a {answer}"],
            keys_values=keys_values,
            label_rows=lambda: (WORDS[None], torch.tensor(1.0)),
        )
        n_asked.clear()
        if not kind().n_vectors:
            kind().prompt(model_of("llama"), given)
        found[name] = (kind().n_vectors, sum(n_asked))
    assert found == {
        "prompt-tuning": (20, 0),
        "p-tuning": (20, 0),
        "prefix-tuning": (0, 10),
        "deep-prompts": (0, 10),
        "multitask": (20, 0),
        "lora": (0, 0),
        "adapter": (0, 0),
        "full-tuning": (0, 0),
        "searched-words": (0, 0),
        "instruction": (0, 0),
        "hard": (0, 0),
        "soft-verbalizer": (0, 0),
    }
    assert all(kind.recipe.optimizer == "adamw" for kind in METHODS.values())
    assert asdict(HardPrompt()) == {"words": ""}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (PromptTuning(), {"n_soft": 20}),
        (PromptTuning(3), {"n_soft": 3}),
        (PTuning(), {"n_soft": 20, "encoder": "mlp", "hidden": 256}),
        (MultitaskPrompt(), {"n_soft": 20, "rank": 1}),
        (PrefixTuning(), {"n_prefix": 10, "reparametrise": True, "hidden": 256}),
        (PrefixTuning(3, False), {"n_prefix": 3, "reparametrise": False, "hidden": 256}),
        (DeepPrompts(), {"n_prefix": 10, "reparametrise": False, "hidden": 256}),
        (HardPrompt(), {"words": ""}),
    ],
    ids=str,
)
def test_what_a_method_leaves_open_suits_a_language_model(method: Any, settings: dict[str, Any]) -> None:
    assert asdict(settled(method, "tiny", "language")) == settings
