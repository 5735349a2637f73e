from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mmprompt.core.fit import fit
from mmprompt.core.learned import Prompt
from mmprompt.core.soft import LoRA
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.methods import CoordinateSearch, Instruction, Projection, PromptInit, SearchedWords, WordSearch
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.search.objective import WordObjective, best_of, row_order
from mmprompt.language.search.task import exchange, prepare, project, search_words
from mmprompt.language.search.words import TokenIds, Vocabulary, allowed_tokens, place_words, readable
from mmprompt.language.task import LanguageProblem, Objective
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.run_files import read_log
from mmprompt.training.seeds import generator
from tests.language_models import CAUSAL, ENCODED, family_model, frozen_model
from tests.small_models import WORDS

pytestmark = pytest.mark.usefixtures("feature_store")

TEXTS = ("a red car", "the blue bird", "a sad dog", "happy fish", "tree left of a house", "the red flower")
LABELS = ("blue", "red", "blue", "blue", "red", "red")
TEMPLATES = (
    "{soft} {text}\nIt is {answer}",
    "{text} is{soft} {answer}",
    "of{soft*2:a} {text} and {soft*2:a}{soft}: {answer}",
)
QUICK: dict[str, WordSearch] = {
    "coordinates": CoordinateSearch(n_steps=3, n_candidates=6, batch_size=4),
    "projection": Projection(n_steps=8, batch_size=4),
}


def text_data(**changes: Any) -> TextData:
    rows = tuple(TextRow({"text": text}, label) for text, label in zip(TEXTS, LABELS, strict=True))
    settings: dict[str, Any] = {"name": "colours", "train": rows, "val": (), "test": rows, "labels": ("blue", "red")}
    return TextData(**settings | changes)


def written_data() -> TextData:
    rows = tuple(TextRow({"text": text}, answer=f"{label} car") for text, label in zip(TEXTS, LABELS, strict=True))
    return text_data(train=rows, test=rows, labels=())


def word_objective(
    model: FrozenLanguageModel, template: str, objective: Objective = "choices", n_soft: int = 3, fluency: float = 0.0
) -> WordObjective:
    data = text_data() if objective == "choices" else written_data()
    verbalizer = Verbalizer({"blue": "blue", "red": ("red", "a red flower")}) if objective == "choices" else None
    prompt = Prompt(Template.parse(template).with_soft(n_soft))
    return WordObjective(LanguagePredictor(model, prompt, verbalizer), data.train, objective, fluency)


def some_prompts(objective: WordObjective, n_prompts: int = 5) -> list[TokenIds]:
    n_soft, n_tokens = objective.prompted.bound.n_soft, objective.prompted.model.vocabulary_size
    ids = torch.randint(2, n_tokens, (n_prompts, n_soft), generator=torch.Generator().manual_seed(1))
    ids[:3, 0] = ids[0, 0]  # some begin alike
    ids[:, 1] = ids[0, 1]
    return [tuple(some) for some in ids.tolist()]


def plain_log_prob(model: FrozenLanguageModel, x: Tensor, answer: tuple[int, ...]) -> Tensor:
    """The log-probability of an answer's tokens after embeddings [L, D], by one plain forward of the whole text."""
    whole = torch.cat([x, model.embed(torch.tensor(answer[:-1], dtype=torch.int64))])
    if model.is_encoder_decoder:
        behind = model.embed(torch.tensor(model.reader.behind, dtype=torch.int64))
        before = torch.tensor([[model.reader.start_id, *answer[:-1]]])
        logits = model.lm(inputs_embeds=torch.cat([x, behind])[None], decoder_input_ids=before).logits[0]
    else:
        logits = model.lm(inputs_embeds=whole[None]).logits[0, len(x) - 1 :]
    return logits.log_softmax(-1)[range(len(answer)), list(answer)].sum()


def plain_losses(objective: WordObjective, one_hot: Tensor, which: list[int]) -> Tensor:
    """[n] losses, of words given one-hot [P, V], row after row and answer after answer."""
    model = objective.prompted.model
    vectors = one_hot @ objective.embeddings
    found = []
    for row in which:
        question = objective.questions[row]
        x = torch.stack(
            [vectors[-1 - slot] if slot < 0 else model.embed(torch.tensor(slot)) for slot in question.slots]
        )
        scores = torch.stack([plain_log_prob(model, x, answer) for answer in question.answers])
        if objective.prompted.label_words is None:
            found.append(-scores.sum())
        else:
            labels = torch.stack([scores[0], scores[1:].logsumexp(0)])
            found.append(F.cross_entropy(labels, torch.tensor(int(objective.rows[row].label == "red"))))
    return torch.stack(found)


def close(found: Tensor, wanted: Tensor) -> None:
    """Equal up to float32, in which some families compute a part whatever the dtype of their weights."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def one_hot_of(objective: WordObjective, ids: TokenIds) -> Tensor:
    return F.one_hot(torch.tensor(ids), objective.prompted.model.vocabulary_size).double()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODED])
def test_a_prompt_is_scored_as_the_plain_model_reads_the_whole_text(kind: str, template: str) -> None:
    objective = word_objective(frozen_model(kind), template)
    prompts = some_prompts(objective)
    which = [4, 0, 5]
    found = objective.losses(prompts, which)
    for ids, losses in zip(prompts, found, strict=True):
        torch.testing.assert_close(losses, plain_losses(objective, one_hot_of(objective, ids), which))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_written_answers_are_scored_as_the_plain_model_reads_them(kind: str) -> None:
    objective = word_objective(frozen_model(kind), TEMPLATES[0], "answer")
    prompts = some_prompts(objective)
    which = list(range(6))
    found = objective.losses(prompts, which)
    assert found.shape == (5, 6)
    for ids, losses in zip(prompts, found, strict=True):
        torch.testing.assert_close(losses, plain_losses(objective, one_hot_of(objective, ids), which))


def test_many_prompts_at_once_are_scored_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = word_objective(frozen_model("qwen2"), TEMPLATES[0])
    prompts = some_prompts(objective, 7)
    together = objective.losses(prompts, range(6))
    for slots_at_once, row_slots in ((100, 256), (2048, 12), (100, 12)):  # few prompts, few texts a row
        monkeypatch.setattr("mmprompt.language.search.objective.SLOTS_AT_ONCE", slots_at_once)
        monkeypatch.setattr("mmprompt.models.decoder.packing.ROW_SLOTS", row_slots)
        torch.testing.assert_close(objective.losses(prompts, range(6)), together)
    for ids, losses in zip(prompts, together, strict=True):
        torch.testing.assert_close(objective.losses([ids], range(6))[0], losses)


def improbability(objective: WordObjective, one_hot: Tensor) -> Tensor:
    """The mean of what the model gives away of its own probability for words that stand before a text."""
    model = objective.prompted.model
    vectors = one_hot @ objective.embeddings
    start = [model.embed(torch.tensor(slot)) for slot in objective.questions[0].slots if slot >= 0][
        : len(model.start_ids)
    ]
    logits = model.lm(inputs_embeds=torch.stack([*start, *vectors])[None]).logits[0].log_softmax(-1)
    said = logits[len(start) - 1 : -1] if start else logits[:-1]
    judged = one_hot if start else one_hot[1:]
    return -(said * judged).sum(1).mean()


@pytest.mark.parametrize("fluency", [0.0, 0.7])
@pytest.mark.parametrize(("kind", "objective"), [("llama", "choices"), ("gpt2", "choices"), ("opt", "answer")])
def test_the_gradient_by_token_is_autograds_on_one_hot_words(kind: str, objective: Objective, fluency: float) -> None:
    searched = word_objective(frozen_model(kind), TEMPLATES[0], objective, fluency=fluency)
    ids, which = some_prompts(searched)[1], [1, 2, 5]
    one_hot = one_hot_of(searched, ids).requires_grad_()
    n_counted = 3 if objective == "choices" else sum(len(searched.questions[row].answers[0]) for row in which)
    expected = plain_losses(searched, one_hot, which).sum() / n_counted
    if fluency:
        expected = expected + fluency * improbability(searched, one_hot)
    (wanted,) = torch.autograd.grad(expected, one_hot)
    found = searched.gradient(ids, which)
    assert found.loss == pytest.approx(expected.item())
    close(found.by_token(searched.embeddings), wanted)
    scored = searched.score(ids)
    assert searched.loss_of(scored, which) == pytest.approx(expected.item())


def test_the_gradient_is_the_one_that_prompt_tuning_follows_on_an_encoder() -> None:
    objective = word_objective(frozen_model("t5"), TEMPLATES[0])
    ids = some_prompts(objective)[0]
    one_hot = one_hot_of(objective, ids).requires_grad_()
    (wanted,) = torch.autograd.grad(plain_losses(objective, one_hot, [0, 3]).mean(), one_hot)
    close(objective.gradient(ids, [0, 3]).by_token(objective.embeddings), wanted)


def word_model() -> FrozenLanguageModel:
    """A model whose every token is a word, so that all prompts are read back."""
    known = {word: number for number, word in enumerate(["<s>", "</s>", "<unk>", *WORDS, "It", "is"])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    lm = family_model("llama", len(known)).double().eval().requires_grad_(False)
    return FrozenLanguageModel("words", lm, fast)


def test_projection_follows_the_gradient_at_the_nearest_words() -> None:
    model, data = word_model(), text_data()
    search = Projection(n_steps=12, batch_size=4, lr=0.4, weight_decay=0.5)
    task = data.task(template="{soft} {text} is {answer}", init=PromptInit("random"))
    setting = prepare(model, search, task, 4, seed=3)
    objective = setting.objective
    unit = model.embedding_rms
    soft = torch.nn.Parameter(setting.vectors / unit)
    optimizer = torch.optim.AdamW([soft], lr=0.4, weight_decay=0.5)
    may_stand = [token for token in range(model.vocabulary_size) if token > 2]  # the first three are special
    losses, visited = [], []
    for step in range(12):
        which = row_order(data.train, generator(3, "rows", step))[:4]
        ids = tuple(
            max(may_stand, key=lambda token: F.cosine_similarity(vector.double(), objective.embeddings[token], dim=0))
            for vector in (soft * unit).detach()
        )
        one_hot = one_hot_of(objective, ids)
        read = (one_hot @ objective.embeddings).requires_grad_()
        loss = 0.0 * read.sum()
        for row in which:
            question = objective.questions[row]
            x = torch.stack([read[-1 - s] if s < 0 else model.embed(torch.tensor(s)) for s in question.slots])
            scores = torch.stack([plain_log_prob(model, x, answer) for answer in question.answers])
            loss = loss + F.cross_entropy(scores, torch.tensor(int(data.train[row].label == "red"))) / 4
        (gradient,) = torch.autograd.grad(loss, read)
        soft.grad = (gradient * unit).float()
        optimizer.step()
        losses.append(loss.item())
        visited.append(ids)
    found = list(project(setting, search, 3))
    assert len(set(visited)) > 3
    assert [loss for _, loss in found] == pytest.approx(losses)
    whole = {ids: objective.score(ids).loss for ids in {*visited, setting.start.ids}}
    assert found[-1][0].ids in whole
    assert found[-1][0].loss == pytest.approx(whole[found[-1][0].ids])


def test_the_best_of_some_prompts_is_the_one_with_the_lowest_loss_over_all_rows() -> None:
    objective = word_objective(word_model(), "{soft} {text} is {answer}")
    ids = [(3, 4 + n % 15, 3 + n % 7) for n in range(30)]
    losses = [objective.score(some).loss for some in ids]
    worst = objective.score(ids[max(range(30), key=losses.__getitem__)])
    found = best_of(objective, ids, worst, [3, 1, 0, 5, 4, 2], 6)
    assert found is not None
    assert found.ids == ids[min(range(30), key=losses.__getitem__)]
    assert found.loss == pytest.approx(min(losses))
    torch.testing.assert_close(found.losses, objective.score(found.ids).losses)


@pytest.mark.parametrize("n_first", [1, 2])
def test_prompts_that_a_first_look_keeps_are_scored_on_all_rows(n_first: int) -> None:
    objective = word_objective(word_model(), "{soft} {text} is {answer}")
    ids = [(3, 4 + n % 15, 3 + n % 7) for n in range(30)]
    scored = [objective.score(some) for some in ids]
    order = [3, 1, 0, 5, 4, 2]
    for best in scored[:5]:
        found = best_of(objective, ids, best, order, n_first)
        if found is not None:
            assert found.loss < best.loss
            torch.testing.assert_close(found.losses, objective.score(found.ids).losses)
    lowest = min(scored, key=lambda one: one.loss)
    ids.remove(lowest.ids)
    assert best_of(objective, ids, lowest, order, n_first) is None


def test_the_best_that_is_not_read_back_in_every_row_is_passed_over() -> None:
    objective = word_objective(word_model(), "{soft} {text} is {answer}")
    ids = [(3, 4 + n % 15, 3 + n % 7) for n in range(10)]
    scored = sorted((objective.score(some) for some in ids), key=lambda one: one.loss)
    objective.reads_back = lambda some: some != scored[0].ids  # type: ignore[method-assign]
    found = best_of(objective, ids, scored[-1], list(range(6)), 6)
    assert found is not None
    assert found.ids == scored[1].ids


def test_words_that_merge_with_one_text_are_not_read_back() -> None:
    model = frozen_model("llama")
    ids = tuple(model.tokenizer("a sa", add_special_tokens=False)["input_ids"][1:])
    rows = [TextRow({"text": text}, label) for text, label in (("a", "red"), ("d", "blue"), ("cat", "red"))]
    prompt = Prompt(Template.parse("a {soft}{text}: {answer}").with_soft(len(ids)))
    words = Verbalizer({"blue": "blue", "red": "red"})
    objective = WordObjective(LanguagePredictor(model, prompt, words), rows, "choices")
    assert objective.first_misread(ids) is None
    assert objective.first_misread(ids, 1) is not None
    assert not objective.reads_back(ids)


def test_a_vocabulary_proposes_the_allowed_tokens_that_lower_the_loss_most() -> None:
    allowed = torch.tensor([True, True, False, True, True])
    vocabulary = Vocabulary(torch.eye(5), allowed)
    gradient = torch.tensor([[0.5, -0.5, -9.0, 0.1, 0.2], [-2.0, -1.0, -9.0, 3.0, 0.0]])
    assert vocabulary.proposals(gradient, (4, 0), 2).tolist() == [[1, 3], [1, 4]]
    assert vocabulary.proposals(gradient, (2, 2), 9).tolist() == [[1, 3, 4], [0, 1, 4]]
    near = torch.tensor([[0.1, 0.0, 9.0, 0.3, 0.2], [0.0, -1.0, 0.0, -2.0, 0.5]])
    assert vocabulary.nearest(near, 2).tolist() == [[3, 4], [4, 0]]
    assert vocabulary.nearest(1e4 * near, 9).tolist() == [[3, 4, 0, 1], [4, 0, 1, 3]]


def test_words_that_are_not_read_back_give_way_to_the_next_nearest() -> None:
    nearest = [[1, 2, 3], [4, 5], [6, 7]]

    def first_misread(ids: TokenIds) -> int | None:
        return 0 if ids[0] == 1 else 2 if ids[2] == 6 else None

    assert readable(nearest, first_misread) == (2, 4, 7)
    assert readable(nearest, lambda ids: 1) is None
    assert readable([list(range(1000))], lambda ids: 0) is None


def test_no_prompt_is_scored_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[TokenIds] = []

    def look(objective: Any, prompts: list[TokenIds], *rest: Any) -> None:
        scored.extend(prompts)

    search = CoordinateSearch(n_steps=6, n_candidates=9, top_k=5, patience=6)
    setting = prepare(word_model(), search, text_data().task(), 2, 1)
    monkeypatch.setattr("mmprompt.language.search.task.best_of", look)
    steps = list(exchange(setting, search, 1))
    assert len(steps) == 6
    assert len(scored) == len(set(scored)) >= 10  # 2 places of 5 tokens, and not the same rows each time
    assert setting.start.ids not in scored
    for ids in scored:
        assert sum(a != b for a, b in zip(ids, setting.start.ids, strict=True)) == 1


def test_rows_take_turns_by_label() -> None:
    rows = [TextRow({"text": str(n)}, "abc"[n % 3] if n < 9 else "a") for n in range(12)]
    order = row_order(rows, generator(1))
    assert sorted(order) == list(range(12))
    for start in (0, 3, 6):
        assert {rows[row].label for row in order[start : start + 3]} == set("abc")
    assert order != row_order(rows, generator(2))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart"])
@pytest.mark.parametrize("name", QUICK)
def test_found_words_are_read_back_and_score_what_they_were_found_for(name: str, kind: str) -> None:
    data, model = text_data(), frozen_model(kind)
    found = search_words(data, model, TEMPLATES[0], QUICK[name], n_tokens=4)
    assert len(found.token_ids) == 4
    soft = Template.parse(TEMPLATES[0]).with_soft(4)
    soft = soft.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder)
    for row in data.train:
        wanted = place_words(soft.encode(row.fields, 48), found.token_ids)
        assert found.prompted.bound.encode(row.fields, 48) == wanted
    assert found.prompted.template.fields == ("text",)
    assert found.prompted.bound.n_soft == 0
    assert found.text.strip() in found.prompted.template.text
    problem = LanguageProblem(found.prompted, found.prompted.prompt, data.train, objective="choices")
    assert problem.step(list(range(6)), 0).losses["choices"].item() == pytest.approx(found.loss)


@pytest.mark.parametrize("name", QUICK)
def test_the_loss_never_rises_and_falls_below_that_of_the_start(name: str) -> None:
    search = replace(QUICK[name], n_steps=10)
    found = search_words(text_data(), frozen_model("llama"), search=search, n_tokens=4)
    losses = [found.start_loss, *(record["loss"] for record in found.history)]
    assert losses == sorted(losses, reverse=True)
    assert found.loss == losses[-1] < found.start_loss
    assert found.history[-1]["text"] == found.text
    assert not found.notices


@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_finds_the_same_words(name: str) -> None:
    model = frozen_model("llama")

    def search(seed: int) -> tuple[TokenIds, list[tuple[float, float]]]:
        found = search_words(text_data(), model, search=QUICK[name], n_tokens=4, seed=seed)
        return found.token_ids, [(record["loss"], record["batch_loss"]) for record in found.history]

    torch.manual_seed(5)
    first = search(1)
    torch.manual_seed(6)
    assert search(1) == first
    assert search(2)[1] != first[1]


@pytest.mark.parametrize("name", QUICK)
def test_no_other_words_are_found_than_the_vocabulary_allows(name: str) -> None:
    model = frozen_model("llama")
    found = search_words(text_data(), model, search=QUICK[name], n_tokens=6, start=PromptInit("vocabulary"))
    text = "".join(model.tokenizer.decode([token]) for token in found.token_ids)
    assert text.isascii()
    assert text.isprintable()
    assert not {0, 1} & set(found.token_ids)


def test_special_tokens_line_breaks_and_halves_of_letters_are_no_words() -> None:
    tokenizer = frozen_model("llama").tokenizer
    ascii_only = allowed_tokens(tokenizer, len(tokenizer) + 3, is_ascii=True)
    assert not ascii_only[[0, 1, -3, -2, -1]].any()
    assert ascii_only.shape == (len(tokenizer) + 3,)
    for text, is_allowed in (("a", True), ("?", True), ("\n", False), (" ", False), ("\0", False), ("é", False)):
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            assert bool(ascii_only[token]) == is_allowed, text
    both = allowed_tokens(tokenizer, len(tokenizer), is_ascii=False)
    assert not both[tokenizer("é", add_special_tokens=False)["input_ids"]].any()
    wide = {"<s>": 0, "</s>": 1, "é": 2, "e": 3}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(wide)), eos_token="</s>", bos_token="<s>"
    )
    assert allowed_tokens(plain, 4, is_ascii=False).tolist() == [False, False, True, True]
    assert allowed_tokens(plain, 4, is_ascii=True).tolist() == [False, False, False, True]


def test_a_search_goes_on_until_it_has_waited_long_enough() -> None:
    model = frozen_model("llama")
    first = search_words(text_data(), model, search=CoordinateSearch(n_steps=40, n_candidates=40), n_tokens=2)
    words = PromptInit("words", words=first.text)
    search = CoordinateSearch(n_steps=9, n_candidates=1, top_k=1, patience=2)
    found = search_words(text_data(), model, search=search, start=words)
    assert found.start_loss == pytest.approx(first.loss)
    assert found.token_ids == first.token_ids
    assert len(found.history) == 2
    assert found.notices == ("The search found nothing better than the words it started from.",)


def test_a_search_starts_from_given_words() -> None:
    model = frozen_model("llama")
    instruction = "of a photo:\nred or blue?"
    found = search_words(text_data(), model, search=QUICK["coordinates"], start=PromptInit(words=instruction))
    assert found.start_text == instruction
    assert sum(a != b for a, b in zip(found.token_ids, model.tokenizer(instruction)["input_ids"][1:], strict=True)) <= 3
    assert len(found.token_ids) == len(model.tokenizer(instruction, add_special_tokens=False)["input_ids"])
    same = search_words(text_data(), model, f'{{soft:"{instruction}"}} {{text:cut}}\n{{answer}}', QUICK["coordinates"])
    assert (same.token_ids, same.loss) == (found.token_ids, found.loss)


def test_a_search_starts_where_its_task_says() -> None:
    task = text_data().task(init=PromptInit(words="the blue"))
    found = search_words(task, frozen_model("llama"), search=QUICK["coordinates"])
    assert found.start_text == "the blue"


def test_fluent_words_are_more_probable() -> None:
    model = frozen_model("llama")

    def improbable(fluency: float) -> float:
        search = CoordinateSearch(n_steps=6, n_candidates=20, fluency=fluency)
        found = search_words(text_data(), model, TEMPLATES[0], search, n_tokens=4)
        judge = word_objective(model, TEMPLATES[0], n_soft=4, fluency=1.0)
        return judge.improbability([found.token_ids]).item()

    assert improbable(5.0) < improbable(0.0) - 0.5


def test_answers_are_searched_for_as_well_as_labels() -> None:
    found = search_words(written_data(), frozen_model("llama"), search=QUICK["coordinates"], n_tokens=3)
    problem = LanguageProblem(found.prompted, found.prompted.prompt, written_data().train)
    assert problem.step(list(range(6)), 0).losses["answer"].item() == pytest.approx(found.loss)
    assert found.loss < found.start_loss


def test_no_more_rows_are_looked_at_than_were_asked_for() -> None:
    search = CoordinateSearch(n_steps=2, n_candidates=3, n_rows=4)
    found = search_words(text_data(), frozen_model("llama"), search=search, n_tokens=3)
    assert "Prompts were scored on 4 of 6 training rows." in found.notices
    setting = prepare(frozen_model("llama"), search, text_data().task(), 3, 1)
    assert sorted(row.label or "" for row in setting.objective.rows) == ["blue", "blue", "red", "red"]


def test_a_run_folder_holds_the_words_the_log_and_how_to_repeat_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = frozen_model("llama")
    found = search_words(text_data(), model, search=QUICK["coordinates"], n_tokens=3, out=folder)
    assert read_log(folder / "log.jsonl") == found.history
    config = json.loads((folder / "run.json").read_text())
    assert config["method"]["name"] == "coordinates"
    assert config["method"]["settings"]["n_candidates"] == 6
    assert (config["n_tokens"], config["seed"], config["template"]) == (3, 1, "{soft*3} {text:cut}\n{answer}")
    header = json.loads((folder / "prompt.json").read_text())
    assert header["training"]["token_ids"] == list(found.token_ids)
    assert header["training"]["text"] == found.text
    loaded = load_prompted(folder, model)
    torch.testing.assert_close(
        loaded.label_log_probs(text_data().test), found.prompted.label_log_probs(text_data().test), rtol=0, atol=0
    )
    assert {path.name for path in folder.iterdir()} <= {
        "run.json", "log.jsonl", "prompt.json", "prompt.safetensors", "run.lock"
    }  # fmt: skip


class Stopping(Callback):
    def __init__(self, error: BaseException | None) -> None:
        self.error, self.told = error, []  # type: ignore[var-annotated]

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        self.told.append((epoch, logs["loss"], len(run.history), run.n_epochs))
        if epoch == 1 and self.error is not None:
            raise self.error
        run.is_stopped = epoch == 1


def test_a_callback_hears_of_each_step_and_may_end_the_search() -> None:
    listener = Stopping(None)
    found = search_words(text_data(), frozen_model("llama"), search=QUICK["projection"], callbacks=[listener])
    assert listener.told == [(n, record["loss"], n, 8) for n, record in enumerate(found.history)]
    assert len(found.history) == 2


def test_a_killed_search_leaves_its_log_and_can_be_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = frozen_model("llama")
    with pytest.raises(KeyboardInterrupt):
        search_words(
            text_data(), model, search=QUICK["projection"], out=folder, callbacks=[Stopping(KeyboardInterrupt())]
        )
    assert len(read_log(folder / "log.jsonl")) == 1
    assert not (folder / "prompt.json").exists()
    found = search_words(text_data(), model, search=QUICK["projection"], out=folder)
    assert read_log(folder / "log.jsonl") == found.history
    with pytest.raises(UserError, match="already holds a finished run, and it is never overwritten"):
        search_words(text_data(), model, search=QUICK["projection"], out=folder)


def test_the_checkpoints_of_a_training_are_not_mixed_with_a_search(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoint/epoch-000001").mkdir(parents=True)
    with pytest.raises(UserError, match="holds the checkpoints of a training"):
        search_words(text_data(), frozen_model("llama"), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "{text} {answer}"}, "the template has no {soft}. Add it."),
        ({"start": PromptInit(words="the cat"), "n_tokens": 9}, "n_tokens is 9, but the words to start from have "),
        (
            {"template": "{soft*3} {text} {answer}", "n_tokens": 7},
            "n_tokens is 7, but the template has 3 soft slots of its own. Leave `n_tokens` out, or write {soft} in ",
        ),
        ({"start": PromptInit(words="a"), "template": "{soft*3} {text} {answer}"}, "but the template has no {soft}"),
        (
            {"start": PromptInit(words="sa"), "template": "a {soft}d {text} {answer}"},
            "are not read back within the template",
        ),
        ({"n_tokens": 0}, "n_tokens is 0, but it must be a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_nothing_is_written(
    settings: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        search_words(text_data(), frozen_model("llama"), out=tmp_path / "run", **settings)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_an_encoder_says_nothing_of_how_fluent_words_are() -> None:
    with pytest.raises(UserError, match="does not say how probable words are"):
        search_words(text_data(), frozen_model("t5"), search=CoordinateSearch(fluency=0.1))


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (CoordinateSearch, {"n_steps": 0}),
        (CoordinateSearch, {"n_candidates": 0}),
        (CoordinateSearch, {"top_k": 0}),
        (CoordinateSearch, {"patience": 0}),
        (CoordinateSearch, {"fluency": -0.1}),
        (Projection, {"lr": 0.0}),
        (Projection, {"weight_decay": -1.0}),
        (Projection, {"batch_size": 0}),
        (Projection, {"n_rows": 0}),
        (Projection, {"fluency": float("nan")}),
    ],
)
def test_settings_out_of_range_are_refused(kind: type[WordSearch], setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(UserError, match=f"^{name} is "):
        kind(**setting)


def test_words_are_searched_by_the_fit_of_every_method(tmp_path: Path) -> None:
    model = frozen_model("llama", torch.float32)
    data = text_data(template="{soft} {text}\nIt is {answer}")
    result = fit(SearchedWords(), model, data, tmp_path / "run", seed=3, progress=False)
    template = search_words(data, model, seed=3).prompted.template.text
    assert "{soft" not in template
    assert [one.template.text for one in (result.predictor, load_prompted(tmp_path / "run", model))] == [template] * 2


def test_an_instruction_is_one_of_the_card() -> None:
    model = frozen_model("llama", torch.float32)
    data = text_data(instructions=("{text} is {answer}", "Is {text} {answer}"))
    assert fit(Instruction(2), model, data, progress=False).predictor.template.text == "Is {text} {answer}"
    with pytest.raises(UserError, match="number is 3, but the card of the data has 2 instructions"):
        fit(Instruction(3), model, data, progress=False)


def test_an_instruction_reads_no_other_template() -> None:
    model = frozen_model("llama", torch.float32)
    data = text_data(instructions=("Is {text} {answer}",), template="{soft*4} {text} {answer}")
    assert fit(Instruction(), model, data, progress=False).predictor.template.text == "Is {text} {answer}"
    with pytest.raises(UserError, match="another one was given"):
        fit(Instruction(), model, data.task(template="{text} MY OWN {answer}"), progress=False)


def test_words_are_searched_for_slots_of_the_template_and_from_the_task_s_start() -> None:
    model = frozen_model("llama", torch.float32)
    for template, start in (
        ("{soft*3} {text} {answer}", PromptInit()),
        ("{soft} {text} {answer}", PromptInit("texts")),
    ):
        task = text_data().task(template=template, init=start)
        found = fit(SearchedWords(), model, task, progress=False).predictor.template.text
        assert found == search_words(text_data(), model, template, start=start).prompted.template.text
        assert "{soft" not in found


def test_what_is_searched_or_written_is_not_learned_together_with_others() -> None:
    with pytest.raises(UserError, match="SearchedWords is not learned together with others"):
        LoRA() + SearchedWords()
