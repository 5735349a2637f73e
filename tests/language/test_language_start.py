"""Where learning starts: words, labels, texts, vocabulary, random numbers, or another prompt."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.core.file import save
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.words import commonest
from mmprompt.errors import UserError
from mmprompt.language.methods import MultitaskPrompt, PromptInit, PTuning
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.start import MOST_USED, start_vectors
from mmprompt.language.templates.bound import BoundTemplate
from mmprompt.language.templates.template import Template
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site, vectors_of
from tests.language_models import frozen_model, prompt_from

LABELS = ((20, 21), (22,), (20, 23))
TEXTS = ((30, 31, 30), (31, 30, 20), (32,))
BY_COUNT = [30, 31, 20, 32]


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind, torch.float32)


def bound_of(template: str, n_soft: int = 0, kind: str = "llama") -> BoundTemplate:
    model = model_of(kind)
    soft = Template.parse(template).with_soft(n_soft)
    return soft.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder)


def started(
    start: PromptInit | None = None,
    n_vectors: int = 6,
    template: str = "{soft} {text} {answer}",
    n_more: int = 0,
    labels: Any = LABELS,
    texts: Any = TEXTS,
    seed: int = 1,
) -> Tensor:
    model = model_of("llama")
    return start_vectors(model, start or PromptInit(), bound_of(template, n_vectors), n_more, labels, texts, seed)


def ids(found: Tensor) -> list[int]:
    """The tokens whose embeddings some vectors are."""
    table = model_of("llama").embed(torch.arange(290))
    places = torch.cdist(found, table).argmin(1)
    assert torch.equal(table[places], found)
    return places.tolist()


def test_labels_come_first_then_the_commonest_tokens_of_the_texts() -> None:
    assert ids(started(PromptInit("labels"))) == [20, 21, 22, 23, 30, 31]
    assert ids(started(PromptInit("labels"), 9)) == [20, 21, 22, 23, 30, 31, 32, 20, 21]


def test_texts_start_from_their_commonest_tokens() -> None:
    assert commonest(TEXTS) == BY_COUNT
    assert ids(started(PromptInit("texts"))) == [*BY_COUNT, 30, 31]


def test_by_default_labels_are_taken_and_else_the_texts() -> None:
    assert ids(started()) == ids(started(PromptInit("labels")))
    assert ids(started(labels=())) == ids(started(PromptInit("texts")))


def test_given_words_are_repeated_or_cut() -> None:
    words = model_of("llama").tokenizer("a red car", add_special_tokens=False)["input_ids"]
    assert len(words) >= 3
    for start in (PromptInit(words="a red car"), PromptInit("words", words="a red car")):
        assert ids(started(start, 2)) == words[:2]
        assert ids(started(start, len(words) + 2)) == [*words, *words[:2]]


def test_vocabulary_is_drawn_anew_for_every_seed_and_never_a_special_token() -> None:
    one, again, other = (ids(started(PromptInit("vocabulary"), 40, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len(set(one)) == 40
    everything = ids(started(PromptInit("vocabulary"), 40 * 8))
    assert {0, 1}.isdisjoint(everything)
    assert set(everything) == set(range(2, 290)), "and where there are not enough, they are repeated"
    assert MOST_USED == 5000


def test_random_vectors_have_the_size_of_the_embeddings() -> None:
    one, again, other = (started(PromptInit("random"), 40, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    size = one.square().mean().sqrt().item()
    assert size == pytest.approx(model_of("llama").embedding_rms, rel=0.1)


def test_nothing_that_is_drawn_touches_torch_s_own_numbers() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for kind in ("vocabulary", "random"):
        started(PromptInit(kind))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_words_of_a_template_go_before() -> None:
    template = '{soft*2} a {soft:"red car"} {text} {answer}'
    bound = bound_of(template)
    places = [n for n, token in enumerate(bound.soft_starts) if token is not None]
    found = ids(started(PromptInit("texts"), 0, template))
    assert [found[n] for n in places] == [token for token in bound.soft_starts if token is not None]
    assert found[:2] == [30, 31]
    assert places[0] == 2


def test_keys_and_values_are_asked_for_where_the_template_has_no_vectors() -> None:
    assert ids(started(n_vectors=0, template="{text} {answer}", n_more=3)) == [20, 21, 22]
    assert started(n_vectors=0, template="{text} {answer}").shape == (0, 32)


def saved(folder: Path, prompt: Prompt, kind: str = "llama") -> Path:
    save(LanguagePredictor(model_of(kind), prompt), folder)
    return folder


def three_vectors() -> Prompt:
    return Prompt(Template.parse("{soft*3} {text} {answer}"), Learned(Site("lm"), drawn(3, 32)))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("start", ["auto", "prompt"])
def test_a_prompt_is_taken_over_and_repeated_or_cut(tmp_path: Path, start: Any) -> None:
    folder = saved(tmp_path / "run", three_vectors())
    found = started(PromptInit(start, from_prompt=folder), 5)
    assert torch.equal(found, drawn(3, 32)[[0, 1, 2, 0, 1]])
    assert torch.equal(started(PromptInit(start, from_prompt=folder), 2), drawn(3, 32)[:2])


def test_of_several_tasks_the_shared_prompt_is_taken_over(tmp_path: Path) -> None:
    prompt = prompt_from(MultitaskPrompt(3), model_of("llama"), drawn(3, 32), ("a", "b"))
    folder = saved(tmp_path / "run", prompt)
    torch.testing.assert_close(started(PromptInit(from_prompt=folder), 3), drawn(3, 32))


def test_a_prompt_of_p_tuning_is_taken_over_as_its_vectors(tmp_path: Path) -> None:
    prompt = prompt_from(PTuning(3, hidden=4), model_of("llama"), drawn(3, 32))
    torch.nn.init.normal_(prompt.sources[0].mlp[2].weight)
    folder = saved(tmp_path / "run", prompt)
    expected = vectors_of(prompt.inserts())[Site("lm")].values
    assert not torch.equal(expected, drawn(3, 32))
    assert torch.equal(started(PromptInit(from_prompt=folder), 3), expected)


def test_a_prompt_without_vectors_among_the_tokens_or_of_another_model_is_refused(tmp_path: Path) -> None:
    prefix = [Learned(Site("lm.kv", layer), drawn(2, 32)) for layer in range(2)]
    folder = saved(tmp_path / "prefix", Prompt(Template.parse("{text} {answer}"), *prefix))
    with pytest.raises(UserError) as caught:
        started(PromptInit(from_prompt=folder))
    assert str(caught.value) == (
        f"{folder} holds no vectors among the tokens, but such are started from. "
        "Use a prompt of prompt-tuning or p-tuning."
    )
    other = saved(tmp_path / "other", three_vectors(), "opt")
    with pytest.raises(UserError, match="this prompt was learned on opt"):
        started(PromptInit(from_prompt=other))
    with pytest.raises(UserError, match=r"holds no prompt\.json"):
        started(PromptInit(from_prompt=tmp_path))


def test_labels_are_refused_where_there_are_none() -> None:
    with pytest.raises(UserError) as caught:
        started(PromptInit("labels"), labels=())
    assert str(caught.value) == "start is labels, but the data has no classes. Use `start='texts'`."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "word"}, "there is no start named 'word'. Did you mean 'words'?"),
        ({"start": "words"}, "words is '', but a start from words needs some. Use `words=\"Classify the text\"`."),
        ({"start": "words", "words": " "}, "words is ' ', but a start from words needs some."),
        ({"words": " "}, "words is ' ', but a start from words needs some."),
        ({"start": "prompt"}, "from_prompt is None, but a start from a prompt needs one. Use `from_prompt=RUN`."),
        ({"start": "texts", "words": "a"}, "words is 'a', but the start is texts. Use `start='words'`."),
        (
            {"start": "texts", "from_prompt": Path("run")},
            "from_prompt is run, but the start is texts. Use `start='prompt'`.",
        ),
        ({"words": "a", "from_prompt": Path("run")}, "words is 'a', but the start is from run too. Leave one out."),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        PromptInit(**settings)
    assert str(caught.value).startswith(message)
