"""Learning a prompt for a language model: the loss, a frozen model, what is written, resume, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable as Make
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmprompt.core import fit as core
from mmprompt.core.soft import DecoderMethod, LoRA
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow, load_texts
from mmprompt.language.generation import generate_texts
from mmprompt.language.methods import (
    DeepPrompts,
    HardPrompt,
    MultitaskPrompt,
    PrefixTuning,
    PromptInit,
    PromptTuning,
    PTuning,
    SoftVerbalizer,
)
from mmprompt.language.predictor import LanguagePredictor, load_prompted
from mmprompt.language.task import LanguageProblem, epochs_of
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import Site
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import RunFailed
from tests.language_models import frozen_model
from tests.reference import plain_language

pytestmark = pytest.mark.usefixtures("feature_store")

METHODS: dict[str, DecoderMethod] = {
    "prompt-tuning": PromptTuning(4),
    "p-tuning": PTuning(4, hidden=16),
    "p-tuning-lstm": PTuning(4, encoder="lstm", hidden=16),
    "prefix-tuning": PrefixTuning(3, hidden=16),
    "flat-prefix": PrefixTuning(3, reparametrise=False),
    "deep-prompts": DeepPrompts(3),
    "multitask": MultitaskPrompt(4, rank=2),
    "soft-verbalizer": SoftVerbalizer(),
    "both": PromptTuning(4) + SoftVerbalizer(),
}
ANIMALS, THINGS = ("cat", "dog", "bird", "fish"), ("car", "tree", "house", "flower")


@cache
def model_of(kind: str, dtype: torch.dtype = torch.float32) -> FrozenLanguageModel:
    return frozen_model(kind, dtype)


def rows(answers: bool = False, tasks: bool = False) -> tuple[TextRow, ...]:
    """Eight texts of two labels, or with an answer; of one task or two."""
    found = []
    for n, word in enumerate((*ANIMALS, *THINGS)):
        label = "animal" if word in ANIMALS else "thing"
        task = ("colour", "kind")[n % 2] if tasks else ""
        fields = {"text": f"a photo of a {('red', 'blue', 'green')[n % 3]} {word}"}
        found.append(TextRow(fields, None if answers else label, f"the {word}" if answers else None, task))
    return tuple(found)


def data_of(answers: bool = False, tasks: bool = False, **card: Any) -> TextData:
    some = rows(answers, tasks)
    return TextData("small", some, some[:3], some[3:6], () if answers else ("animal", "thing"), **card)


OF_THE_TASK = ("template", "verbalizer", "objective", "is_recomputed", "init")


def fit(method: DecoderMethod, out: Path | None = None, data: TextData | None = None, **more: Any) -> Any:
    """A short training; options of the task, `changes` of the recipe, and what else the core's `fit` takes."""
    quick = {"epochs": 3, "batch_size": 4, "checkpoint_seconds": 0.0} if method.is_trained else {}
    settings = quick | more.pop("changes", {})
    options = {name: more.pop(name) for name in OF_THE_TASK if name in more}
    model = more.pop("model", model_of("llama"))
    task = (data or data_of(tasks=isinstance(method, MultitaskPrompt))).task(**options)
    return core.fit(method, model, task, out, progress=False, **settings, **more)


def untrained(
    data: TextData, method: DecoderMethod, init: PromptInit | None = None, **options: Any
) -> LanguagePredictor:
    return data.task(init=init or PromptInit(), **options).predictor(method, model_of("llama"), 1)


def problem_of(data: TextData, method: DecoderMethod, objective: Any, **options: Any) -> LanguageProblem:
    prompted = data.task(**options).predictor(method, model_of("llama", torch.float64), 1)
    prompted.prompt.double()
    return LanguageProblem(prompted, prompted.prompt, data.train, data.val, objective)


def plain_scores(problem: LanguageProblem, row: TextRow, answer: tuple[int, ...]) -> Tensor:
    """Log-probabilities of an answer's tokens, the row read alone."""
    model, prompted = problem.prompted.model, problem.prompted
    vectors = prompted.vectors(row.task)
    soft = vectors[Site("lm")].values.to(model.dtype) if Site("lm") in vectors else None
    learned = [v.values.to(model.dtype) for site, v in sorted(vectors.items()) if site.tower == "lm.kv"]
    slots = prompted.bound.encode(row.fields, 48)
    more = {"soft": soft, "learned": learned, "kv_shape": model.kv_shape}
    return plain_language.token_log_probs(model.lm, [(slots, [answer])], **more)


def check_step(problem: LanguageProblem, expected: Tensor, indices: list[int]) -> Any:
    result = problem.step(indices, 0)
    (loss,) = result.losses.values()
    parameters = list(problem.module.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # Llama's norms are taken in single precision
    return result


@pytest.mark.parametrize("method", [PromptTuning(4), DeepPrompts(3), MultitaskPrompt(4)], ids=str)
def test_the_loss_of_answers_is_taken_a_token_of_all_and_the_end_is_learned(method: DecoderMethod) -> None:
    data = data_of(answers=True, tasks=isinstance(method, MultitaskPrompt))
    problem = problem_of(data, method, "answer")
    indices = [5, 0, 2, 3]
    answers = [(*problem.prompted.bound.answers([str(data.train[n].answer)])[0], 1) for n in indices]
    scores = [plain_scores(problem, data.train[n], answer) for n, answer in zip(indices, answers, strict=True)]
    result = check_step(problem, -torch.cat(scores).mean(), indices)
    assert list(result.losses) == ["answer"]
    assert result.n_correct is None


@pytest.mark.parametrize(
    "verbalizer",
    [
        Verbalizer({"animal": ("cat", "dog"), "thing": "a red car"}),
        Verbalizer({"animal": "x", "thing": "z"}, "mean"),
        Verbalizer({"animal": ("cat", "fish"), "thing": "a red car"}, "first", length_normalised=True),
    ],
)
def test_the_loss_of_choices_is_the_cross_entropy_over_the_labels(verbalizer: Verbalizer) -> None:
    problem = problem_of(data_of(), PromptTuning(4), "choices", verbalizer=verbalizer)
    indices = [5, 0, 2, 7]
    losses, n_correct = [], 0
    for n in indices:
        row = problem.rows[n]
        words = [[problem.prompted.bound.answers([word])[0] for word in some] for some in verbalizer.words.values()]
        scores = [torch.stack([self_score(problem, row, ids, verbalizer) for ids in some]) for some in words]
        how = verbalizer.aggregation
        each = torch.stack(
            [s.logsumexp(0) if how == "logsumexp" else s.mean() if how == "mean" else s[0] for s in scores]
        )
        wanted = ["animal", "thing"].index(str(row.label))
        losses.append(-each.log_softmax(0)[wanted])
        n_correct += int(each.argmax()) == wanted
    result = check_step(problem, torch.stack(losses).mean(), indices)
    assert list(result.losses) == ["choices"]
    assert result.n_correct == n_correct


def self_score(problem: LanguageProblem, row: TextRow, ids: tuple[int, ...], verbalizer: Verbalizer) -> Tensor:
    found = plain_scores(problem, row, ids)
    return found.mean() if verbalizer.length_normalised else found.sum()


def test_labels_may_be_learned_as_answers_then_their_first_word_is_the_answer_and_no_end() -> None:
    verbalizer = Verbalizer({"animal": ("a cat", "dog"), "thing": "car"})
    problem = problem_of(data_of(), PromptTuning(4), "answer", verbalizer=verbalizer)
    (cat,) = problem.prompted.bound.answers(["a cat"])
    (car,) = problem.prompted.bound.answers(["car"])
    scores = [plain_scores(problem, problem.rows[n], ids) for n, ids in ((0, cat), (7, car))]
    check_step(problem, -torch.cat(scores).mean(), [0, 7])


@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_learns_and_the_model_stays_as_it_was(name: str) -> None:
    method = METHODS[name]
    model = model_of("llama")
    before = model.compute_fingerprint()
    result = fit(method, changes={"epochs": 15, "lr": 0.1})
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert model.compute_fingerprint() == before == model.fingerprint
    assert not any(parameter.requires_grad for parameter in result.predictor.prompt.parameters())


@pytest.mark.parametrize(
    ("kind", "method"), [("mistral", PromptTuning(4)), ("t5", PromptTuning(4)), ("t5", PrefixTuning(3, hidden=16))]
)
def test_other_families_learn_too(kind: str, method: DecoderMethod) -> None:
    template = "{text} {soft}: {answer}" if method.n_vectors else None  # where Mistral's window reaches
    result = fit(method, model=model_of(kind), template=template, changes={"epochs": 15, "lr": 0.1})
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.9 * losses[0]


def test_answers_are_learned_until_they_are_written_to_their_end() -> None:
    data = replace(data_of(answers=True), train=rows(answers=True)[3:5])
    result = fit(PrefixTuning(6, hidden=32), data=data, changes={"epochs": 80, "lr": 0.05})
    found = generate_texts(result.predictor, data.train, Generation(12))
    assert [(one.text, one.is_cut) for one in found] == [(row.answer, False) for row in data.train]


class StopAfter(Callback):
    """Ends the process's training in the middle, as a kill would."""

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_epoch_begin(self, run: Any, epoch: int) -> None:
        if epoch == self.n_epochs:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    fit(METHODS[name], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(METHODS[name], tmp_path / "halves", callbacks=[StopAfter(2)])
    fit(METHODS[name], tmp_path / "halves", resume=True)
    for file in ("prompt.safetensors", "prompt.json"):
        one, other = ((tmp_path / run / file).read_bytes() for run in ("whole", "halves"))
        assert one == other
    records = [json.loads(line) for line in (tmp_path / "halves" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]


def test_other_settings_do_not_resume_a_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(PromptTuning(4), tmp_path / "run", callbacks=[StopAfter(1)])
    with pytest.raises(UserError, match=r"holds the checkpoints of an earlier run"):
        fit(PromptTuning(4), tmp_path / "run")
    with pytest.raises(UserError):
        fit(PromptTuning(5), tmp_path / "run", resume=True)
    with pytest.raises(UserError):
        fit(PromptTuning(4), tmp_path / "run", resume=True, seed=2)
    with pytest.raises(UserError):
        fit(PromptTuning(4), tmp_path / "run", resume=True, init=PromptInit("texts"))


@pytest.mark.parametrize("name", ["p-tuning-lstm", "multitask"])
def test_the_same_run_gives_the_same_bytes_whatever_torch_drew_before(name: str, tmp_path: Path) -> None:
    for seed, run in ((5, "one"), (6, "again")):
        torch.manual_seed(seed)
        fit(METHODS[name], tmp_path / run)
    fit(METHODS[name], tmp_path / "other", seed=2)
    for name in ("prompt.safetensors", "prompt.json"):
        one, again, other = ((tmp_path / run / name).read_bytes() for run in ("one", "again", "other"))
        assert one == again != other


def test_rows_that_are_read_again_teach_the_same(tmp_path: Path) -> None:
    fit(PromptTuning(4), tmp_path / "kept")
    fit(PromptTuning(4), tmp_path / "again", is_recomputed=True)
    one, other = (
        load_prompted(tmp_path / run, model_of("llama")).vectors()[Site("lm")].values for run in ("kept", "again")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", ["answer", "choices"])
def test_rows_that_are_read_again_keep_less_for_the_gradient(objective: Any) -> None:
    sizes = {}
    for is_recomputed in (False, True):
        prompted = untrained(data_of(), PromptTuning(4))
        problem = LanguageProblem(prompted, prompted.prompt, rows(), (), objective, is_recomputed)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            problem.step(list(range(8)), 0)
        sizes[is_recomputed] = sum(kept.values())
    assert sizes[True] < 0.7 * sizes[False]


def test_a_run_folder_says_what_was_done(tmp_path: Path) -> None:
    words = Verbalizer({"animal": "cat", "thing": ("car", "a house")})
    init = PromptInit(words="a photo")
    result = fit(
        PromptTuning(4), tmp_path / "run", template="{soft} {text}: {answer}", verbalizer=words, init=init, seed=7
    )
    assert result.folder == tmp_path / "run"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"run.json", "log.jsonl", "checkpoint", "prompt.json", "prompt.safetensors"}
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["method"] == {"name": "prompt-tuning", "settings": {"n_soft": 4}}
    assert (config["format"], config["kind"]) == (2, "language")
    assert config["template"] == "{soft*4} {text}: {answer}"
    assert config["verbalizer"]["words"] == {"animal": ["cat"], "thing": ["car", "a house"]}
    assert config["objective"] == "choices"
    assert config["init"] == {"start": "auto", "words": "a photo", "from_prompt": None}
    assert (config["seed"], config["recipe"]["epochs"], config["dtype"]) == (7, 3, "float32")
    assert config["data"]["sizes"] == {"train": 8, "val": 3, "test": 3}
    assert config["backbone"]["fingerprint"] == model_of("llama").fingerprint
    header = json.loads((tmp_path / "run" / "prompt.json").read_text())
    assert header["training"]["method"] == config["method"]
    assert header["training"]["seed"] == 7
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log == result.history
    assert {"epoch", "lr", "loss", "choices", "accuracy", "seconds"} <= set(log[0])
    saved = load_prompted(tmp_path / "run", model_of("llama"))
    assert torch.equal(saved.label_log_probs(rows()), result.predictor.label_log_probs(rows()))


def test_a_prompt_in_words_is_written_without_training(tmp_path: Path) -> None:
    result = fit(HardPrompt(), tmp_path / "run", template="It is {text}: {answer}")
    assert result.history == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "prompt.json", "prompt.safetensors"}
    saved = load_prompted(tmp_path / "run", model_of("llama"))
    assert torch.equal(saved.label_log_probs(rows()), result.predictor.label_log_probs(rows()))


@pytest.mark.parametrize(
    ("method", "data", "template"),
    [
        (PromptTuning(2), data_of(), "{soft*2} {text:cut}\n{answer}"),
        (HardPrompt(), data_of(), "{text:cut}\n{answer}"),
        (PrefixTuning(2, hidden=4), data_of(), "{text:cut}\n{answer}"),
        (PromptTuning(2), data_of(template="{text} {soft} {answer}"), "{text} {soft*2} {answer}"),
        (
            PromptTuning(2),
            TextData(
                "two",
                (TextRow({"a": "fish", "b": "cat"}, "x"), TextRow({"a": "cat", "b": "fish"}, "y")),
                (),
                (),
                ("x", "y"),
            ),
            "{soft*2} {a:cut}\n{b:cut}\n{answer}",
        ),
    ],
)
def test_without_a_template_the_data_s_own_or_its_fields_are_taken(
    method: DecoderMethod, data: TextData, template: str
) -> None:
    prompted = fit(method, data=data).predictor
    assert prompted.template.text == template
    assert prompted.bound.n_soft == (2 if isinstance(method, PromptTuning) else 0)


def test_without_a_verbalizer_the_data_s_own_or_its_labels_are_taken() -> None:
    own = data_of(verbalizer={"animal": ("cat", "dog"), "thing": ("car",)})
    assert dict(fit(HardPrompt(), data=own).predictor.verbalizer.words) == {"animal": ("cat", "dog"), "thing": ("car",)}
    assert dict(fit(HardPrompt()).predictor.verbalizer.words) == {"animal": ("animal",), "thing": ("thing",)}
    assert fit(HardPrompt(), data=data_of(answers=True)).predictor.label_words is None


@pytest.mark.parametrize("kind", ["labels", "texts", "vocabulary", "random", "words"])
def test_every_start_can_be_learned_from(kind: Any) -> None:
    init = PromptInit(kind, words="a photo" if kind == "words" else "")
    one = fit(PromptTuning(4), init=init, changes={"epochs": 1, "lr": 1e-9})
    other = untrained(data_of(), PromptTuning(4), init)
    torch.testing.assert_close(one.predictor.vectors()[Site("lm")].values, other.vectors()[Site("lm")].values)


def test_a_prompt_goes_on_from_another(tmp_path: Path) -> None:
    fit(PromptTuning(4), tmp_path / "run")
    next_one = untrained(data_of(), PromptTuning(4), PromptInit(from_prompt=tmp_path / "run"))
    saved = load_prompted(tmp_path / "run", model_of("llama"))
    torch.testing.assert_close(next_one.label_log_probs(rows()), saved.label_log_probs(rows()), rtol=1e-5, atol=1e-5)


def test_tasks_learn_prompts_of_their_own() -> None:
    prompted = fit(MultitaskPrompt(4), changes={"epochs": 10}).predictor
    assert prompted.tasks == ("colour", "kind")
    one, other = (prompted.vectors(task)[Site("lm")].values for task in prompted.tasks)
    assert (one - other).abs().max() > 0.01


def test_early_stopping_looks_at_the_validation_rows() -> None:
    history = fit(PromptTuning(4), changes={"patience": 1, "epochs": 30}).history
    assert all("val_accuracy" in record for record in history)
    with pytest.raises(UserError, match="this data has no validation part"):
        fit(PromptTuning(4), data=replace(data_of(), val=()), changes={"patience": 1})
    with pytest.raises(UserError, match="this data has no validation part"):
        fit(PromptTuning(4), data=data_of(answers=True), changes={"patience": 1})


def test_slots_of_a_template_s_own_are_filled_by_default() -> None:
    for method in (PromptTuning(), PromptTuning(3)):
        prompted = fit(method, template="{soft*3} {text} {answer}", changes={"epochs": 1}).predictor
        assert len(prompted.vectors()[Site("lm")].values) == 3


def test_few_rows_are_gone_through_often_enough() -> None:
    recipe = PromptTuning.recipe
    assert recipe.batch_size == 16
    assert epochs_of(recipe, 8) == 80
    assert epochs_of(recipe, 16 * 20) == 4
    assert epochs_of(recipe, 16 * 3 + 5) == 27
    assert epochs_of(replace(recipe, epochs=2), 8) == 2


def refused(tmp_path: Path, make: Make[[Path], Any], error: type[Exception] = UserError) -> str:
    """The message, and that nothing was written."""
    with pytest.raises(error) as caught:
        make(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


LONG = TextRow({"text": "a red car " * 40}, "animal")
REFUSED: dict[str, tuple[Make[[Path], Any], str]] = {
    "no soft slots": (
        lambda out: fit(PromptTuning(2), out, template="{text} {answer}"),
        "prompt-tuning learns vectors among the tokens, but the template has no {soft}. Add {soft} to it.",
    ),
    "soft slots that nobody fills": (
        lambda out: fit(DeepPrompts(2), out, template="{soft*3} {text} {answer}"),
        "the template has 3 soft slots, but deep-prompts learns no vectors among the tokens. "
        "Take them out, or use prompt-tuning.",
    ),
    "bad template": (
        lambda out: fit(PromptTuning(2), out, template="{soft} {text}"),
        "template, column 14: ",
    ),
    "missing field": (
        lambda out: fit(PromptTuning(2), out, template="{soft} {texts} {answer}"),
        "the field 'texts' is missing: the template reads it, but the row has 'text'. Give 'texts' too, or ",
    ),
    "choices without labels": (
        lambda out: fit(PromptTuning(2), out, data_of(answers=True), objective="choices"),
        "the objective choices needs labels, but these rows have answers. Use `objective='answer'`.",
    ),
    "unknown objective": (
        lambda out: fit(PromptTuning(2), out, objective="choice"),  # type: ignore[arg-type]
        "there is no objective named 'choice'. Did you mean 'choices'?",
    ),
    "too long": (
        lambda out: fit(
            PromptTuning(2), out, replace(data_of(), train=(*rows(), LONG)), template="{soft}{text} {answer}"
        ),
        "the row takes ",
    ),
    "answer too long": (
        lambda out: fit(
            PromptTuning(2),
            out,
            replace(data_of(answers=True), train=(TextRow({"text": "a"}, None, "a red car " * 40),)),
        ),
        "an answer takes ",
    ),
    "label without a word": (
        lambda out: fit(PromptTuning(2), out, verbalizer=Verbalizer({"animal": "a", "car": "b"})),
        "the verbalizer has no word for the label 'thing'. Add one.",
    ),
    "word without a label": (
        lambda out: fit(PromptTuning(2), out, verbalizer=Verbalizer({"animal": "a", "thing": "b", "things": "c"})),
        "there is no label named 'things'. Did you mean 'thing'? Take its words out of the verbalizer.",
    ),
    "verbalizer without labels": (
        lambda out: fit(PromptTuning(2), out, data_of(answers=True), verbalizer=Verbalizer({"a": "a", "b": "b"})),
        "a verbalizer was given, but these rows have answers and no labels. Leave it out.",
    ),
    "no tasks": (lambda out: fit(MultitaskPrompt(2), out, data_of()), "multitask needs rows of several tasks"),
    "too many vectors": (lambda out: fit(PromptTuning(60), out), "the prompt takes 60 slots, but llama has 48"),
    "read again behind an encoder": (
        lambda out: fit(PromptTuning(2), out, model=model_of("t5"), is_recomputed=True),
        "t5 reads texts in its encoder, which are not read again. Train without recomputing.",
    ),
    "a start from labels without any": (
        lambda out: fit(PromptTuning(2), out, data_of(answers=True), init=PromptInit("labels")),
        "start is labels, but the data has no classes. Use `start='texts'`.",
    ),
    "a start of what starts from no vectors": (
        lambda out: fit(LoRA(2), out, template="{text} {answer}", init=PromptInit(words="a photo")),
        "lora starts from no vectors, but `init` says where they start. Leave it out.",
    ),
    "vectors for fewer slots": (
        lambda out: fit(PromptTuning(7), out, template="{soft*3} {text} {answer}"),
        "n_soft is 7, but the template has 3 soft slots of its own. Leave `n_soft` out, or write {soft} in the ",
    ),
    "nothing to learn from": (
        lambda out: fit(PromptTuning(2), out, replace(data_of(), train=())),
        "small has no train rows, but a prompt is learned from some. Add some.",
    ),
    "a field that no template can name": (
        lambda out: fit(PromptTuning(2), out, TextData("odd", (TextRow({"text (en)": "a"}, None, "b"),), (), (), ())),
        "the field 'text (en)' cannot stand in a template, where names are letters, digits, blanks, - and _. "
        "Name it otherwise, in odd.yaml perhaps: columns: {label: THEIRS, text: 'text (en)'}.",
    ),
    "settings of steps where none are taken": (
        lambda out: fit(HardPrompt(), out, template="{text} {answer}", changes={"lr": 3.0}),
        "lr is 3.0, but hard is not trained by steps. Leave `lr` out.",
    ),
    "cropped and flipped texts": (
        lambda out: fit(PromptTuning(2), out, changes={"augment": "coop"}),
        "augment is coop, but texts are learned from as they are. Leave `augment` out.",
    ),
    "views of texts": (
        lambda out: fit(PromptTuning(2), out, changes={"views": 3}),
        "views is 3, but texts are learned from as they are. Leave `views` out.",
    ),
    "no such data": (
        lambda out: fit(PromptTuning(2), out, load_texts(out.parent / "none.jsonl")),
        "none.jsonl",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    make, expected = REFUSED[name]
    assert expected in refused(tmp_path, make)


def test_a_finished_run_is_not_written_over(tmp_path: Path) -> None:
    fit(PromptTuning(2), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a finished run"):
        fit(PromptTuning(2), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


class Spoil(Callback):
    """Changes a frozen weight, as a faulty method would."""

    def __init__(self, model: FrozenLanguageModel) -> None:
        self.model = model

    def on_epoch_end(self, run: Any, epoch: int, logs: dict[str, Any]) -> None:
        with torch.no_grad():
            self.model.lm.model.norm.weight[3] += 1e-3


def test_a_model_that_changed_is_not_saved_with(tmp_path: Path) -> None:
    model = frozen_model("llama", torch.float32)
    with pytest.raises(RunFailed) as caught:
        fit(PromptTuning(2), tmp_path / "run", model=model, callbacks=[Spoil(model)])
    assert str(caught.value) == "weights of llama changed while a prompt was trained, so nothing was saved"
    assert not (tmp_path / "run" / "prompt.json").exists()


def test_a_run_is_learned_from_files_as_from_their_rows(tmp_path: Path) -> None:
    lines = [
        json.dumps({"split": split, "text": row.fields["text"], "label": row.label})
        for split, some in (("train", rows()), ("test", (TextRow({"text": "a cat"}, "animal"),)))
        for row in some
    ]
    (tmp_path / "small.jsonl").write_text("\n".join(lines))
    from_file = fit(PromptTuning(2), data=load_texts(tmp_path / "small.jsonl"))
    from_rows = fit(PromptTuning(2))
    assert torch.equal(
        from_file.predictor.vectors()[Site("lm")].values, from_rows.predictor.vectors()[Site("lm")].values
    )


def test_texts_have_no_shots_to_count_steps_by(tmp_path: Path) -> None:
    message = r"^steps_per_shot is 5, but data of language has no shots\. Give `n_steps` or `epochs`\.$"
    with pytest.raises(UserError, match=message):
        core.fit(PromptTuning(2), model_of("llama"), data_of().task(), tmp_path / "run", steps_per_shot=5)
    assert not (tmp_path / "run").exists()
