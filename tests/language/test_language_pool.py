"""A pool of prompts: who is chosen, what is mixed, what is put together, and the folder it is kept in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmprompt.core.learned import Learned, Prompt, Source
from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.generation import generate_texts
from mmprompt.language.pool import HEADER, TENSORS, PromptPool, compose, load_pool, save_pool, text_features
from mmprompt.language.predictor import LanguagePredictor, classify_texts
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from tests.language_models import frozen_model

TEMPLATE = "{soft} {text}\nIt is {answer}"
ANIMALS = [TextRow({"text": text}) for text in ("dog dog dog", "dog dog dog dog", "dog dog")]
THINGS = [TextRow({"text": text}) for text in ("a red car by the house", "a blue car by the house", "the red house")]
ROWS = [TextRow({"text": text}) for text in ("a happy dog", "a blue car by the tree", "dog and dog", "the house")]
WORDS = {"animal": ("dog", "cat"), "thing": ("car", "tree"), "other": ("x", "house")}
"""Words that the models of the tests take to be about equally probable."""
VERBALIZER = Verbalizer(WORDS)
REORDERED = Verbalizer({label: WORDS[label] for label in ("other", "animal", "thing")})
KINDS = ("llama", "gpt2", "t5")


@cache
def model_of(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)


def drawn(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompted_of(
    seed: int = 5,
    kind: str = "llama",
    template: str = TEMPLATE,
    verbalizer: Verbalizer | None = VERBALIZER,
    n_soft: int = 3,
    n_kv: int = 0,
) -> LanguagePredictor:
    model = model_of(kind)
    sources: list[Source] = [Learned(Site("lm"), drawn(n_soft, 32, seed=seed))] if n_soft else []
    assert model.kv_shape is not None
    n_layers, n_heads, width = model.kv_shape
    for layer in range(n_layers if n_kv else 0):
        sources.append(Learned(Site("lm.kv", layer), drawn(n_kv, 2 * n_heads * width, seed=seed + layer)))
    prompt = Prompt(Template.parse(template).with_soft(n_soft), *sources).requires_grad_(False)
    return LanguagePredictor(model, prompt, verbalizer)


def pool_of(kind: str = "llama", temperature: float = 0.05, **more: int) -> PromptPool:
    prompts = {"animals": prompted_of(5, kind, **more), "things": prompted_of(9, kind, **more)}  # type: ignore[arg-type]
    return PromptPool.of(prompts, {"animals": ANIMALS, "things": THINGS}, temperature)


def plain_features(model: FrozenLanguageModel, text: str) -> Tensor:
    """The mean over a text's tokens halfway up, the text read alone."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if model.is_encoder_decoder:
        slots = torch.tensor([[*model.start_ids, *ids, 1]])
        states = model.lm.get_encoder()(slots, output_hidden_states=True).hidden_states
        return states[1][0, len(model.start_ids) : -1].mean(0)
    before = list(model.start_ids) or model.tokenizer("\n")["input_ids"]
    states = model.lm(torch.tensor([[*before, *ids]]), output_hidden_states=True).hidden_states
    return states[1][0, len(before) :].mean(0)


def mean_prompt(pool: PromptPool, weights: Tensor) -> LanguagePredictor:
    """One prompt of the weighted mean of all vectors."""
    first = next(iter(pool.prompts.values()))
    each = [prompted.vectors() for prompted in pool.prompts.values()]
    sources = [
        Learned(site, sum(w * one[site].values for w, one in zip(weights.tolist(), each, strict=True)))
        for site in each[0]
    ]
    return LanguagePredictor(pool.model, Prompt(first.template, *sources), first.verbalizer)


@pytest.mark.parametrize("kind", [*KINDS, "opt_narrow", "bart", "gemma2", "bloom"])
def test_what_a_text_is_like_does_not_depend_on_the_texts_beside_it(kind: str) -> None:
    model = model_of(kind)
    texts = [row.fields["text"] for row in (*ROWS, *THINGS)]
    with torch.no_grad():
        expected = torch.stack([plain_features(model, text) for text in texts])
    torch.testing.assert_close(text_features(model, texts), expected.float(), rtol=1e-5, atol=1e-5)
    assert not text_features(model, texts).requires_grad


def test_texts_longer_than_the_model_are_read_as_far_as_they_fit() -> None:
    model = model_of("llama")
    long = "red car " * model.budget
    ids = model.tokenizer(long, add_special_tokens=False)["input_ids"][: model.budget - len(model.start_ids)]
    states = model.lm(torch.tensor([[*model.start_ids, *ids]]), output_hidden_states=True).hidden_states
    expected = states[1][0, len(model.start_ids) :].mean(0)
    torch.testing.assert_close(text_features(model, [long])[0], expected.float(), rtol=1e-5, atol=1e-5)


def test_weights_are_the_softmax_of_cosines_to_the_means_of_the_training_texts() -> None:
    pool, model = pool_of(temperature=0.2), model_of("llama")
    with torch.no_grad():
        keys = [
            torch.stack([plain_features(model, r.fields["text"]) for r in some]).mean(0) for some in (ANIMALS, THINGS)
        ]
        for row, weights in zip(ROWS, pool.weights(ROWS), strict=True):
            query = plain_features(model, row.fields["text"])
            cosines = torch.stack([torch.cosine_similarity(query, key, dim=0) for key in keys])
            torch.testing.assert_close(weights, (cosines / 0.2).softmax(0).float(), rtol=1e-4, atol=1e-5)


def test_a_text_is_routed_to_the_prompt_that_knows_it() -> None:
    pool = pool_of()
    names, weights = pool.route([*ANIMALS, *THINGS])
    assert names == ["animals"] * 3 + ["things"] * 3
    assert weights.shape == (6, 2)
    assert [one is pool.prompts[name] for one, name in zip(pool.choose([*ANIMALS, *THINGS]), names, strict=True)]


def test_a_text_is_known_by_the_fields_that_some_prompt_reads() -> None:
    pool = pool_of()
    more = [TextRow(row.fields | {"unread": "a red car by the blue house"}, label="thing", task="any") for row in ROWS]
    torch.testing.assert_close(pool.weights(more), pool.weights(ROWS))
    other = {"text": prompted_of(), "both": prompted_of(template="{soft} {title} {text}\n{answer}")}
    rows = {"text": ANIMALS, "both": [TextRow({"title": "x", "text": "y"})]}
    titled = [TextRow({"text": "dog", "title": "a red car"})]
    plain = [TextRow({"text": "dog"})]
    pool = PromptPool.of(other, rows, temperature=1.0)
    assert not torch.allclose(pool.weights(titled), pool.weights(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_classified_by_its_prompt(kind: str) -> None:
    pool = pool_of(kind)
    rows = [THINGS[0], ANIMALS[0], THINGS[1], ANIMALS[1], *ROWS]
    names = pool.route(rows)[0]
    assert names[:4] == ["things", "animals"] * 2
    for row, name, found in zip(rows, names, pool.classify(rows), strict=True):
        (expected,) = pool.prompts[name].classify([row])
        assert found.label == expected.label
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    assert pool.classify([]) == []


@pytest.mark.parametrize("verbalizer", [VERBALIZER, REORDERED])
def test_probabilities_are_mixed_by_weight_label_by_label(verbalizer: Verbalizer) -> None:
    prompts = {"animals": prompted_of(5), "things": prompted_of(9, verbalizer=verbalizer)}
    pool = PromptPool.of(prompts, {"animals": ANIMALS, "things": THINGS}, 0.2)
    each = [prompted.classify(ROWS) for prompted in prompts.values()]
    for row, (weights, found) in enumerate(
        zip(pool.weights(ROWS).tolist(), pool.classify(ROWS, "outputs"), strict=True)
    ):
        for label in WORDS:
            expected = sum(w * some[row].probabilities[label] for w, some in zip(weights, each, strict=True))
            assert found.probabilities[label] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, {"n_soft": 3}) for kind in KINDS] + [("llama", {"n_soft": 0, "n_kv": 2}), ("t5", {"n_soft": 2, "n_kv": 2})],
)
def test_mixed_vectors_are_those_of_each_row_alone(kind: str, shape: Mapping[str, int]) -> None:
    template = TEMPLATE if shape["n_soft"] else "{text}\nIt is {answer}"
    prompts = {name: prompted_of(seed, kind, template, **shape) for name, seed in (("animals", 5), ("things", 9))}
    pool = PromptPool.of(prompts, {"animals": ANIMALS, "things": THINGS}, 0.02)
    mixed, weights = pool.mix(ROWS), pool.weights(ROWS)
    assert weights.max(0).values.sub(weights.min(0).values).gt(0.1).all()
    written = generate_texts(mixed, ROWS, Generation(max_tokens=4))
    for row, found, one, text, some in zip(ROWS, pool.classify(ROWS, "vectors"), mixed, written, weights, strict=True):
        plain = mean_prompt(pool, some)
        (expected,) = plain.classify([row])
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert one.classify([row])[0].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert generate_texts(plain, [row], Generation(max_tokens=4)) == [text]


@pytest.mark.parametrize("temperature", [1e-5, 1e-42, 1e-60])
def test_weights_of_one_leave_one_prompt(temperature: float) -> None:
    pool = pool_of(temperature=temperature)
    names = pool.route(ROWS)[0]
    for how in ("outputs", "vectors"):
        for found, expected in zip(pool.classify(ROWS, how), pool.classify(ROWS), strict=True):  # type: ignore[arg-type]
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert len(set(names)) == 2


def test_each_row_is_answered_with_its_prompt() -> None:
    pool = pool_of()
    rows = [*THINGS, *ANIMALS]
    written = generate_texts(pool.choose(rows), rows, Generation(max_tokens=5))
    for row, name, text in zip(rows, pool.route(rows)[0], written, strict=True):
        assert generate_texts(pool.prompts[name], [row], Generation(max_tokens=5)) == [text]


def test_composed_prompts_stand_where_their_names_do() -> None:
    task, language = prompted_of(5, n_soft=2), prompted_of(9, n_soft=3)
    template = "{soft*3:language} {text} {soft*2:task}\nIt is {answer}"
    both = compose({"task": task, "language": language}, template, VERBALIZER)
    vectors = [one.vectors()[Site("lm")].values for one in (language, task)]
    prompt = Prompt(Template.parse(template), Learned(Site("lm"), torch.cat(vectors)))
    plain = LanguagePredictor(model_of("llama"), prompt, VERBALIZER)
    torch.testing.assert_close(both.label_log_probs(ROWS), plain.label_log_probs(ROWS), rtol=1e-9, atol=1e-9)
    swapped = compose(
        {"task": task, "language": language}, "{soft*2:task} {text} {soft*3:language}\nIt is {answer}", VERBALIZER
    )
    assert not torch.allclose(both.label_log_probs(ROWS), swapped.label_log_probs(ROWS))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{soft*2:task} {text} {answer}", "no soft slots named 'language'"),
        ("{soft*2:task} {soft*3:langage} {answer}", "Did you mean 'language'?"),
        ("{soft*2:task} {soft*4:language} {answer}", r"are 4, but that prompt has 3 vectors. Write {soft\*3:language}"),
        ("{soft*2:task} {soft*3:language} {soft*3} {answer}", "without a name"),
    ],
)
def test_a_template_for_other_prompts_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose({"task": prompted_of(n_soft=2), "language": prompted_of()}, template)


def test_keys_and_values_are_not_put_into_a_template() -> None:
    with pytest.raises(UserError, match="has keys and values"):
        compose({"a": prompted_of(), "b": prompted_of(n_kv=2)}, "{soft*3:a} {soft*3:b} {answer}")


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_saved_pool_says_the_same(kind: str, tmp_path: Path) -> None:
    pool = pool_of(kind, 0.125)
    save_pool(pool, tmp_path / "pool")
    again = load_pool(tmp_path / "pool", pool.model)
    assert (again.names, again.temperature) == (pool.names, 0.125)
    torch.testing.assert_close(again.weights(ROWS), pool.weights(ROWS), rtol=0, atol=0)
    for found, expected in zip(again.classify(ROWS), pool.classify(ROWS), strict=True):
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)


def saved(tmp_path: Path) -> Path:
    save_pool(pool_of(), tmp_path / "pool")
    return tmp_path / "pool"


def edit(folder: Path, **changes: object) -> None:
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | changes))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / HEADER).unlink(), "so it is no pool of prompts"),
    (lambda folder: (folder / HEADER).write_text("[]"), "is not a header"),
    (lambda folder: edit(folder, format=2), "Upgrade mmprompt"),
    (lambda folder: edit(folder, names=["animals", "../things"]), "no name of a folder"),
    (lambda folder: edit(folder, names=["animals", "missing"]), "missing: is not there"),
    (lambda folder: edit(folder, names=["animals"]), "names 1 prompts, but a pool has two or more"),
    (lambda folder: edit(folder, names=[]), "names 0 prompts, but a pool has two or more"),
    (lambda folder: edit(folder, temperature=0.0), "temperature is 0.0"),
    (lambda folder: edit(folder, more=1), "more"),
    (lambda folder: (folder / TENSORS).write_bytes(b"no"), "was changed after it was saved"),
    (lambda folder: (folder / TENSORS).unlink(), "cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_pool_is_refused(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_pool(folder, model_of("llama"))


def test_keys_of_another_number_of_prompts_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    third = {name: prompted_of(seed) for name, seed in (("animals", 5), ("things", 9), ("more", 2))}
    save_pool(PromptPool(third, drawn(3, 32)), tmp_path / "other")
    (folder / TENSORS).write_bytes((tmp_path / "other" / TENSORS).read_bytes())
    edit(folder, tensors_sha256=json.loads((tmp_path / "other" / HEADER).read_text())["tensors_sha256"])
    with pytest.raises(UserError, match="one key for each of 2 prompts"):
        load_pool(folder, model_of("llama"))


def test_a_name_that_is_no_folder_is_not_saved(tmp_path: Path) -> None:
    pool = PromptPool({"a/b": prompted_of(), "c": prompted_of(9)}, drawn(2, 32))
    with pytest.raises(UserError, match="Rename it"):
        save_pool(pool, tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


def multitask() -> LanguagePredictor:
    source = MultitaskVectors.of(("a", "b"), drawn(3, 32), torch.ones(2, 3, 1), torch.ones(2, 1, 32))
    return LanguagePredictor(model_of("llama"), Prompt(Template.parse(TEMPLATE).with_soft(3), source))


def test_prompts_that_cannot_be_chosen_from_are_refused() -> None:
    with pytest.raises(UserError, match="there are 1 prompts"):
        PromptPool({"a": prompted_of()}, drawn(1, 32))
    with pytest.raises(UserError, match=r"prompts\['b'\] is 2, but it must be"):
        PromptPool({"a": prompted_of(), "b": 2}, drawn(2, 32))  # type: ignore[dict-item]
    with pytest.raises(UserError, match="of several models"):
        PromptPool({"a": prompted_of(), "b": prompted_of(kind="gpt2")}, drawn(2, 32))
    with pytest.raises(UserError, match="itself of several tasks"):
        PromptPool({"a": prompted_of(), "b": multitask()}, drawn(2, 32))
    with pytest.raises(UserError, match="temperature is -1"):
        PromptPool({"a": prompted_of(), "b": prompted_of()}, drawn(2, 32), -1)
    with pytest.raises(UserError, match=r"temperature is '0\.1'"):
        PromptPool({"a": prompted_of(), "b": prompted_of()}, drawn(2, 32), "0.1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rows is of type list"):
        PromptPool.of({"a": prompted_of(), "b": prompted_of()}, {"a": ["dog"], "b": THINGS})  # type: ignore[list-item]
    with pytest.raises(UserError, match="rows is of type list"):
        pool_of().classify(["dog"])  # type: ignore[list-item]
    with pytest.raises(UserError, match="'b' has no rows"):
        PromptPool.of({"a": prompted_of(), "b": prompted_of()}, {"a": ANIMALS, "b": []})
    with pytest.raises(UserError, match="no prompt named 'c'"):
        PromptPool.of({"a": prompted_of(), "b": prompted_of()}, {"a": ANIMALS, "b": THINGS, "c": THINGS})


@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (2, 7), (64,)], ids=str)
def test_keys_are_one_for_each_prompt_as_wide_as_the_model(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^the shape of the keys is .*, but \[2, 32\] was expected"):
        PromptPool({"a": prompted_of(), "b": prompted_of()}, torch.ones(shape))


def test_texts_that_say_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="has no tokens"):
        text_features(model_of("llama"), ["cat", ""])
    with pytest.raises(UserError, match="none of the fields that the prompts read: 'text'"):
        pool_of().weights([TextRow({"title": "cat"})])


def test_only_what_goes_together_is_mixed() -> None:
    def pool(other: LanguagePredictor) -> PromptPool:
        return PromptPool({"a": prompted_of(), "b": other}, drawn(2, 32))

    other_words = Verbalizer(WORDS | {"animal": ("fish", "a red bird")})
    other_labels = Verbalizer({"animal": "dog", "plant": "tree"})
    assert len(pool(prompted_of(9, verbalizer=other_words)).classify(ROWS, "outputs")) == len(ROWS)
    with pytest.raises(UserError, match="differ in their words of the labels"):
        pool(prompted_of(9, verbalizer=other_words)).classify(ROWS, "vectors")
    with pytest.raises(UserError, match="have different labels"):
        pool(prompted_of(9, verbalizer=other_labels)).classify(ROWS, "outputs")
    with pytest.raises(UserError, match="differ in their template"):
        pool(prompted_of(9, template="{soft} {text} {answer}")).mix(ROWS)
    with pytest.raises(UserError, match="differ in their template"):
        pool(prompted_of(9, n_soft=4)).mix(ROWS)
    with pytest.raises(UserError, match="differ in their vectors"):
        pool(prompted_of(9, n_kv=2)).mix(ROWS)
    with pytest.raises(UserError, match="Did you mean 'outputs'"):
        pool(prompted_of(9)).classify(ROWS, "output")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_prompts_are_labelled_in_one_batch_as_alone(kind: str) -> None:
    long_words = Verbalizer({"both": ("red house",), "one": ("dog", "cat")})
    shapes: list[tuple[int, Verbalizer, int, int]] = [
        (3, VERBALIZER, 3, 0),
        (4, long_words, 3, 0),
        (5, VERBALIZER, 2, 2),
    ]
    prompts = [prompted_of(seed, kind, TEMPLATE, words, n, n_kv) for seed, words, n, n_kv in shapes]
    each = [prompts[row % 3] for row in range(len(ROWS) * 2)]
    found = classify_texts(each, ROWS * 2)
    for one, row, prediction in zip(each, ROWS * 2, found, strict=True):
        (alone,) = one.classify([row])
        assert prediction.label == alone.label
        assert prediction.probabilities == pytest.approx(alone.probabilities, rel=1e-5)
