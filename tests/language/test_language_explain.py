"""What a prompt of a language model is said to do, against its plain definition on small models."""

from __future__ import annotations

import logging
from dataclasses import replace
from math import isnan

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.explain import (
    VectorWatch,
    ablate,
    attention_mass,
    drift,
    nearest_tokens,
    prompt_effect_kl,
    token_relevance,
)
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.sites import LM_INPUT, Site
from mmprompt.training.loop import train
from mmprompt.training.problem import StepResult
from mmprompt.training.recipe import Recipe
from tests.language_models import frozen_model

WORDS = Verbalizer({"good": "good", "bad": "bad"})
ROWS = [TextRow({"text": "a good film"}, "good"), TextRow({"text": "a bad and long day"}, "bad")] * 2


def prompted_with(
    values: torch.Tensor, kind: str = "llama", template: str = "{soft} {text} {answer}"
) -> LanguagePredictor:
    model = frozen_model(kind)
    prompt = Prompt(Template.parse(template).with_soft(len(values)), Learned(LM_INPUT, values)).double()
    return LanguagePredictor(model, prompt, WORDS)


def random_values(n: int, width: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, width, generator=torch.Generator().manual_seed(3))


def test_the_nearest_token_of_a_token_s_own_embedding_is_that_token() -> None:
    model = frozen_model("llama")
    ids = model.tokenizer("a good film", add_special_tokens=False)["input_ids"]
    found = nearest_tokens(model, model.embed(torch.tensor(ids)) * 3.0, 2)
    for token, pairs in zip(ids, found, strict=True):
        assert pairs[0][0] in (model.tokenizer.decode([token]).strip(), repr(model.tokenizer.decode([token])))
        assert pairs[0][1] == pytest.approx(1.0, abs=1e-5)
        assert pairs[0][1] >= pairs[1][1]


def test_special_tokens_are_never_near() -> None:
    model = frozen_model("llama")
    specials = torch.tensor(model.tokenizer.all_special_ids)
    names = {model.tokenizer.decode([token]).strip() for token in specials.tolist()}
    found = nearest_tokens(model, model.embed(specials), 3)
    assert not names & {word for pairs in found for word, _ in pairs}


def test_vectors_of_another_width_and_no_words_are_refused() -> None:
    model = frozen_model("llama")
    with pytest.raises(UserError, match="width"):
        nearest_tokens(model, torch.zeros(2, model.width + 1))
    with pytest.raises(UserError, match="a whole number, 1 or more"):
        nearest_tokens(model, torch.zeros(2, model.width), 0)


def test_drift_says_where_vectors_went() -> None:
    model = frozen_model("llama")
    start = model.embed(torch.tensor([20, 21]))
    turned, grown = drift(model, [start, torch.stack([-start[0], 4.0 * start[1]])])
    assert turned.cosine == pytest.approx(-1.0)
    assert grown.cosine == pytest.approx(1.0)
    size = start[1].float().square().mean().sqrt().item() / model.embedding_rms
    assert grown.size == pytest.approx(4 * size, rel=1e-5)
    assert len(turned.words) == 2
    assert grown.words[0] == grown.words[1]


def test_a_vector_is_worth_what_is_lost_without_its_slot() -> None:
    prompted = prompted_with(random_values(3, frozen_model("llama").width))
    found = ablate(prompted, ROWS)
    values = prompted.vectors()[LM_INPUT].values
    without = prompted_with(torch.cat([values[:1], values[2:]]).detach())
    wanted = torch.tensor([WORDS.labels.index(row.label) for row in ROWS])
    whole_loss = F.cross_entropy(prompted.label_log_probs(ROWS), wanted).item()
    left_loss = F.cross_entropy(without.label_log_probs(ROWS), wanted).item()
    assert len(found) == 3
    assert found[1].loss == pytest.approx(left_loss - whole_loss, abs=1e-5)
    assert abs(found[1].loss) > 1e-4


def test_rows_of_several_tasks_are_each_read_with_the_vectors_of_their_task() -> None:
    model = frozen_model("llama")
    columns, rows = random_values(4, 1).reshape(2, 2, 1), random_values(2, model.width).reshape(2, 1, model.width)
    source = MultitaskVectors.of(("first", "second"), random_values(2, model.width), columns, rows)
    prompted = LanguagePredictor(model, Prompt(Template.parse("{soft*2} {text} {answer}"), source).double(), WORDS)
    first, second = ([replace(row, task=task) for row in ROWS] for task in source.tasks)
    mixed = ablate(prompted, [row for pair in zip(first, second, strict=True) for row in pair])
    apart = [ablate(prompted, rows) for rows in (first, second)]
    assert abs(apart[0][0].loss - apart[1][0].loss) > 1e-4
    for both, *each in zip(mixed, *apart, strict=True):
        assert both.loss == pytest.approx(sum(one.loss for one in each) / 2, abs=1e-9)


def test_rows_without_labels_are_refused() -> None:
    prompted = prompted_with(random_values(2, frozen_model("llama").width))
    with pytest.raises(UserError, match="no label"):
        ablate(prompted, [TextRow({"text": "a good film"})])


def test_a_prompt_is_heard_as_far_as_it_changes_the_next_token() -> None:
    width = frozen_model("llama").width
    prompted = prompted_with(random_values(2, width))
    lm, tokenizer = prompted.model.lm, prompted.model.tokenizer
    expected = 0.0
    for row in ROWS[:2]:
        slots = prompted.question(row.fields, ((prompted.model.end_id,),)).slots
        values = prompted.vectors()[LM_INPUT].values
        table = lm.get_input_embeddings().weight
        x = torch.stack([values[-1 - slot] if slot < 0 else table[slot] for slot in slots])[None]
        bare = torch.tensor([[slot for slot in slots if slot >= 0]])
        p = lm(inputs_embeds=x).logits[0, -1].log_softmax(-1)
        q = lm(input_ids=bare).logits[0, -1].log_softmax(-1)
        expected += (p.exp() * (p - q)).sum().item() / 2
    assert tokenizer is not None
    assert prompt_effect_kl(prompted, ROWS[:2]) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_rows_that_hold_nothing_beside_the_vectors_tell_nothing() -> None:
    prompted = prompted_with(random_values(1, frozen_model("gpt2").width), "gpt2", "{soft}{text:cut:rstrip}{answer}")
    assert prompted.model.start_ids == ()
    empty = TextRow({"text": "?!"}, "good")
    assert prompt_effect_kl(prompted, [*ROWS, empty]) == prompt_effect_kl(prompted, ROWS)
    assert ablate(prompted, [*ROWS, empty]) == ablate(prompted, ROWS)
    assert isnan(prompt_effect_kl(prompted, [empty]))
    with pytest.raises(UserError, match="the rows hold nothing but one vector"):
        ablate(prompted, [empty])


def test_keys_and_values_that_nothing_attends_to_are_not_heard() -> None:
    model = frozen_model("llama")
    n_layers, n_heads, head = model.kv_shape
    loud = [Learned(Site("lm.kv", layer), random_values(2, 2 * n_heads * head)) for layer in range(n_layers)]
    prompt = Prompt(Template.parse("{text} {answer}"), *loud).double()
    assert prompt_effect_kl(LanguagePredictor(model, prompt, WORDS), ROWS[:2]) > 1e-3
    empty = Prompt(Template.parse("{text} {answer}"))
    assert prompt_effect_kl(LanguagePredictor(model, empty, WORDS), ROWS[:2]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_relevance_of_a_token_is_the_slope_along_its_embedding(kind: str) -> None:
    prompted = prompted_with(random_values(2, frozen_model(kind).width), kind)
    model = prompted.model
    slots, found = token_relevance(prompted, ROWS[0])
    values = prompted.vectors()[LM_INPUT].values
    x = torch.stack([values[-1 - s] if s < 0 else model.embed(torch.tensor(s)) for s in slots]).detach()

    @torch.no_grad()
    def log_prob(x: torch.Tensor, answer: tuple[int, ...]) -> float:
        if kind == "t5":
            end = model.embed(torch.tensor(model.reader.behind))
            ids = torch.tensor([[model.reader.start_id, *answer[:-1]]])
            logits = model.lm(inputs_embeds=torch.cat([x, end])[None], decoder_input_ids=ids).logits[0]
        else:
            after = model.embed(torch.tensor(answer[:-1], dtype=torch.int64))
            logits = model.lm(inputs_embeds=torch.cat([x, after])[None]).logits[0, len(x) - 1 :]
        return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()

    def score(x: torch.Tensor) -> float:
        good, bad = (log_prob(x, answer) for answer in prompted.answers)
        return good - bad if prompted.label_words.labels == ("good", "bad") else bad - good

    assert prompted.label_words.flat == tuple(prompted.label_words.labels)
    for place in range(len(slots)):
        ends = []
        for step in (1e-3, -1e-3):
            moved = x.clone()
            moved[place] *= 1 + step
            ends.append(score(moved))
        assert found[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.02, abs=5e-4), (
            place
        )  # norms in float32
    assert found.abs().max() > 1e-3


def test_relevance_with_keys_and_values_is_that_of_the_text_alone() -> None:
    model = frozen_model("llama")
    n_layers, n_heads, head = model.kv_shape
    loud = [Learned(Site("lm.kv", layer), random_values(2, 2 * n_heads * head)) for layer in range(n_layers)]
    template = Template.parse("{text} {answer}")
    row = TextRow({"text": "a good film"}, answer="a long day")
    with_prompt, without = (
        token_relevance(LanguagePredictor(model, Prompt(template, *sources).double()), row) for sources in (loud, ())
    )
    assert with_prompt[0] == without[0]
    assert all(slot >= 0 for slot in without[0])
    assert not torch.allclose(with_prompt[1], without[1], rtol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_attention_mass_is_that_of_the_last_slot_read(kind: str) -> None:
    prompted = prompted_with(random_values(3, frozen_model(kind).width), kind)
    before = prompted.model.lm.config._attn_implementation
    found = attention_mass(prompted, ROWS[:1])
    assert prompted.model.lm.config._attn_implementation == before
    assert found.shape == (len(prompted.model.reader.keys_values_of(torch.zeros(1, prompted.model.width).double())), 3)
    assert bool((found > 0).all())
    assert bool((found.sum(1) < 1).all())
    slots = prompted.question(ROWS[0].fields, ((prompted.model.end_id,),)).slots
    values = prompted.vectors()[LM_INPUT].values
    x = torch.stack([values[-1 - s] if s < 0 else prompted.model.embed(torch.tensor(s)) for s in slots])[None].detach()
    prompted.model.lm.set_attn_implementation("eager")
    out = prompted.model.lm(inputs_embeds=x, output_attentions=True)
    prompted.model.lm.set_attn_implementation(before)
    place = slots.index(-1)
    assert found[0, 0].item() == pytest.approx(out.attentions[0][0, :, -1, place].mean().item(), rel=1e-5)


def test_models_with_an_encoder_show_no_attention_to_a_prompt() -> None:
    prompted = prompted_with(random_values(2, frozen_model("t5").width), "t5")
    with pytest.raises(UserError, match="decoders with keys and values"):
        attention_mass(prompted, ROWS[:1])


RECIPE = Recipe(optimizer="sgd", lr=1e-6, epochs=4, batch_size=2, momentum=0.0, weight_decay=0.0, warmup_epochs=0)


class Pulled:
    """A problem whose gradient is the vectors' sum times a factor of the epoch."""

    def __init__(self, prompted: LanguagePredictor, factors: tuple[float, ...]) -> None:
        self.prompted, self.factors = prompted, factors
        self.n_items = 4

    @property
    def module(self) -> nn.Module:
        return self.prompted.prompt

    def step(self, indices: list[int], epoch: int) -> StepResult:
        return StepResult({"loss_of": self.factors[epoch] * self.prompted.vectors()[LM_INPUT].values.sum()})

    def validate(self) -> None:
        return None


def watched(factors: tuple[float, ...], size: float = 1.0, lr: float = 1e-6) -> tuple[VectorWatch, list[dict]]:
    model = frozen_model("llama")
    source = Learned(LM_INPUT, torch.full((2, model.width), size * model.embedding_rms))
    prompted = LanguagePredictor(model, Prompt(Template.parse("{soft*2} {answer}"), source))
    watch = VectorWatch(prompted)
    history = train(Pulled(prompted, factors), replace(RECIPE, lr=lr), 1, 4, None, "", [watch], False)
    return watch, history


def test_an_ordinary_training_is_quiet_and_leaves_its_figures() -> None:
    watch, history = watched((1.0, 1.0, 1.0, 1.0))
    assert watch.alarms == {}
    width = watch.prompted.model.width
    assert [record["gradient_norm"] for record in history] == pytest.approx([(2 * width) ** 0.5] * 4)
    assert history[-1]["vector_size"] == pytest.approx(1.0, rel=1e-3)


def test_a_gradient_that_vanishes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch, _ = watched((1.0, 1e-12, 1e-12, 1e-12))
    assert list(watch.alarms) == ["vanished"]
    assert sum("vanished" in record.message for record in caplog.records) == 1
    assert "epoch 2" in watch.alarms["vanished"]


def test_a_gradient_that_bursts_is_said() -> None:
    watch, _ = watched((1.0, 1.0, 500.0, 1.0))
    assert list(watch.alarms) == ["burst"]
    assert "epoch 3" in watch.alarms["burst"]
    assert "500 times" in watch.alarms["burst"]


def test_a_gradient_after_none_at_all_is_no_burst() -> None:
    watch, _ = watched((0.0, 0.0, 1.0, 1.0))
    assert list(watch.alarms) == ["vanished"]


def test_vectors_that_outgrow_the_model_are_said() -> None:
    watch, _ = watched((1.0,) * 4, size=6.0)
    assert list(watch.alarms) == ["outgrown"]
    assert "6.0 times" in watch.alarms["outgrown"]
