"""A frozen language model with a prompt: texts in, labels, scores of answers or generated texts out.

It knows prompts and texts, not how a prompt was learned. Prompts of any kind are mixed in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmprompt.display as display
from mmprompt.core.file import load as load_predictor
from mmprompt.core.file import model_of, read_prompt, refuse_other_backbone
from mmprompt.core.header import RESTORE, read_header
from mmprompt.core.learned import Given, Inserts, Prompt
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.language.data import TextRow
from mmprompt.language.sources import LabelRows
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.sites import LM_INPUT, Insert, Site, Vectors, vectors_of
from mmprompt.settings import Share, checked

BATCH = 32
N_SHOWN = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelPrediction:
    """The most probable label of a row, and the probabilities of every label, which sum to 1.

    The label is None where it is less probable than the threshold that was asked for.
    """

    label: str | None
    probabilities: Mapping[str, float]

    @property
    def probability(self) -> float:
        """Of the most probable label, 0..1."""
        return max(self.probabilities.values())

    def __repr__(self) -> str:
        said = "I don't know" if self.label is None else self.label
        return f"<LabelPrediction: {said} {self.probability:.3f}, of {len(self.probabilities)} labels>"

    def _repr_html_(self) -> str:
        said = "I don't know" if self.label is None else self.label
        return display.section(said, display.bars(dict(sorted(self.probabilities.items(), key=lambda pair: -pair[1]))))


class LanguagePredictor:
    """A frozen language model and a prompt.

    Args:
        model: the frozen model.
        prompt: what it is prompted with; its template is a `Template` that says how many vectors it holds.
        label_words: the words of each label; None where texts are generated.
    Raises:
        UserError: the prompt does not fit the model.
    """

    kind = "language"

    @checked
    def __init__(self, model: FrozenLanguageModel, prompt: Prompt, label_words: Verbalizer | None = None) -> None:
        self.model = self.backbone = model
        self.label_words = label_words
        self.take(prompt)

    def take(self, prompt: Prompt) -> None:
        """Have the model prompted with another prompt, such as one that was found.

        Raises:
            UserError: the prompt does not fit the model.
        """
        model, label_words, self.prompt = self.model, self.label_words, prompt
        self.bound = self.template.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder)
        for task in self.tasks or ("",):
            inserts = self.inserts(task)
            model.check_inserts(inserts)
            vectors = vectors_of(inserts)
            if LM_INPUT in vectors and vectors[LM_INPUT].n_vectors != self.bound.n_soft:
                raise UserError(
                    f"the template has {self.bound.n_soft} soft slots, but the prompt has "
                    f"{vectors[LM_INPUT].n_vectors} vectors. Use the template that the prompt was learned in."
                )
        if label_words is None and (self.bound.behind or self.bound.n_answers > 1):
            raise UserError(
                "this template goes on behind {answer}, where words of labels are compared, but there are no labels. "
                "End it with {answer} to have a text written."
            )
        self.answers = self.bound.answers(() if label_words is None else label_words.flat)
        self.label_rows = label_rows_of(self)
        if self.label_rows is not None:
            self.answers = ((*self.bound.masks, model.end_id),)  # the last of which any label stands for
        elif label_words is not None:
            self._check_words(label_words)
        self.words: Tensor | None = None  # [W] answers that are all of one token: no other logits are needed
        if self.answers and not self.bound.behind and all(len(answer) == 1 for answer in self.answers):
            self.words = torch.tensor([answer[0] for answer in self.answers], device=model.device)
        self.compiled: dict[str, tuple[tuple[int, ...], KVCache]] = {}  # of each task what was last read of the prompt

    def _check_words(self, label_words: Verbalizer) -> None:
        """Refuse words that the tokenizer does not know, or that it cannot tell apart."""
        unknown = getattr(self.model.tokenizer, "unk_token_id", None)
        for word, ids in zip(label_words.flat, self.answers, strict=True):
            if unknown is not None and unknown in ids:
                problem = f"does not know all of {word!r}, a word of a label"
                raise UserError(f"the tokenizer of {self.model.name} {problem}. Choose another word.")
        label_words.check_distinct(self.answers)

    def __repr__(self) -> str:
        text = self.template.text
        return f"<LanguagePredictor: {text if len(text) <= 60 else text[:59] + '…'!r} on {self.model.name}>"

    def _repr_html_(self) -> str:
        words = {} if self.label_words is None else self.label_words.to_dict()["words"]
        labels = ", ".join(f"{label} ({' / '.join(several)})" for label, several in list(words.items())[:N_SHOWN])
        more = ", …" if len(words) > N_SHOWN else ""
        said = {"labels (words)": labels + more, "tasks": ", ".join(self.tasks)} | self.prompt.facts()
        return display.section(f"LanguagePredictor on {self.model.name}", display.facts(said))

    @property
    def template(self) -> Template:
        """What stands around a row's fields, soft vectors among it."""
        if not isinstance(self.prompt.template, Template):
            advice = "Use the class of predictor that it was learned for."
            raise bad_value("prompt", "of another kind", "a prompt of a language model was expected", advice)
        return self.prompt.template

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have vectors of their own; () where one prompt serves all."""
        return next((source.tasks for source in self.prompt.sources if source.tasks), ())

    def inserts(self, task: str = "") -> Inserts:
        """Give all that was learned by site, for one task where there are several."""
        return self.prompt.inserts(given=Given(task=task))

    def vectors(self, task: str = "") -> dict[Site, Vectors]:
        """Give the vectors by site, for one task where there are several."""
        return vectors_of(self.inserts(task))

    @property
    def changes_weights(self) -> bool:
        """Whether something was learned beside, behind or in place of the model's own layers, its output among them."""
        return any(site.part for site in self.prompt.sites) or self.label_rows is not None

    def header(self) -> dict[str, Any]:
        """Give what the prompt file keeps of a language model beside its prompt; see `core.file.Predictor`."""
        words = None if self.label_words is None else self.label_words.to_dict()
        return {"verbalizer": words, "dtype": str(self.model.dtype).removeprefix("torch.")}

    def kept_tensors(self) -> dict[str, Tensor]:
        """Give nothing: a language model computes nothing ahead."""
        return {}

    @checked
    def predict(self, items: TextRow | Mapping[str, str] | str | Sequence[Any], threshold: Share = 0.0) -> Any:
        """Answer one text or many: labels with probabilities where there are labels, else generated texts.

        Args:
            items: rows, mappings of fields, or texts for a template of one field.
            threshold: 0..1; where no label is as probable as that, it is None: "I don't know".
        Raises:
            UserError: a field is missing, a text does not fit, or there are no labels for a threshold.
        """
        if isinstance(items, TextRow | Mapping | str):
            return self.predict([items], threshold)[0]
        rows = [self.row_of(item) for item in items]
        self.say_cut(rows, self.longest_answer(Generation()))
        if self.label_words is not None:
            found = self.classify(rows)
            return [one if one.probability >= threshold else replace(one, label=None) for one in found]
        if threshold:
            raise bad_value("threshold", threshold, "this prompt writes texts and has no labels", "Leave it out.")
        from mmprompt.language.generation import generate_texts  # which takes predictors

        return generate_texts(self, rows)

    def longest_answer(self, settings: Generation) -> int:
        """Give the tokens that answers have room for: of the longest label, or those that may be generated."""
        return max(map(len, self.answers)) if self.label_words is not None else settings.max_tokens

    def n_cut(self, rows: Sequence[TextRow], n_answer: int | Sequence[int]) -> int:
        """Count the rows that are not read whole, for fields marked `:cut` are too long.

        Args:
            rows: N of them.
            n_answer: tokens of an answer, or of that to each row.
        """
        room = self.model.budget - self.n_prefix
        sizes = [n_answer] * len(rows) if isinstance(n_answer, int) else n_answer
        return sum(self.bound.is_cut(row.fields, room, size) for row, size in zip(rows, sizes, strict=True))

    def say_cut(self, rows: Sequence[TextRow], n_answer: int | Sequence[int], what: str = "texts") -> str:
        """Log how many rows are not read whole, and return what is said; "" where all are. See `n_cut`."""
        n_cut = self.n_cut(rows, n_answer)
        if not n_cut:
            return ""
        are = "is" if n_cut == 1 else "are"
        said = (
            f"{n_cut} of {len(rows)} {what} {are} too long and {are} cut at the end: {self.model.name} has "
            f"{self.model.budget} slots for prompt, text and answer, and a template may allow less."
        )
        _log.warning("%s", said)
        return said

    def row_of(self, item: TextRow | Mapping[str, str] | str) -> TextRow:
        """Return the row that a text or a mapping of fields is."""
        if isinstance(item, TextRow):
            return item
        if isinstance(item, Mapping):
            return TextRow(dict(item))
        if len(self.template.fields) != 1:
            names = ", ".join(self.template.fields)
            raise UserError(f"a text was given, but the template has the fields {names}. Give a mapping of them.")
        return TextRow({self.template.fields[0]: item})

    @property
    def n_prefix(self) -> int:
        """Keys and values of the prompt in each block."""
        vectors = self.vectors()
        return vectors[Site("lm.kv", 0)].n_vectors if Site("lm.kv", 0) in vectors else 0

    def question(self, fields: Mapping[str, str], answers: Sequence[tuple[int, ...]]) -> Question:
        """Lay out a row up to its answer, with the tokens of some answers."""
        n_answer = max(map(len, answers))
        return Question(self.bound.encode(fields, self.model.budget - self.n_prefix, n_answer), tuple(answers))

    def asked(self, fields: Mapping[str, str], words: Sequence[str] | None = None) -> Question:
        """Lay out a row with some words as answers, by default those of the labels, and what stands behind them."""
        if self.bound.behind:
            given = self.verbalizer.flat if words is None else words
            return Question(*self.bound.ask(fields, self.model.budget - self.n_prefix, given))
        return self.question(fields, self.answers if words is None else self.bound.answers(words))

    @torch.no_grad()
    def answer_log_probs(self, rows: Sequence[TextRow], answers: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return the log-probabilities of given answers to each of N rows: sums over their tokens and those of what
        stands behind them, without an end.
        """
        questions = [self.asked(row.fields, some) for row, some in zip(rows, answers, strict=True)]
        found: list[Tensor] = []
        for start, end, inserts in parts_by_task(self, rows):
            scores = self.model.predict(inserts, questions[start:end]).answer_log_probs()
            found += scores.split([len(some) for some in answers[start:end]])
        return found

    @torch.no_grad()
    def label_log_probs(self, rows: Sequence[TextRow]) -> Tensor:
        """Return [N, C] log-probabilities of the labels, which sum to 1 over the labels."""
        parts = [torch.zeros(0, len(self.verbalizer.labels), device=self.model.device)]
        questions = [self.asked(row.fields) for row in rows]
        for start, end, inserts in parts_by_task(self, rows):
            parts.append(self.label_scores(inserts, questions[start:end]))
        return torch.cat(parts).log_softmax(-1)

    def label_scores(
        self, inserts: Mapping[Site, Insert], questions: Sequence[Question], is_recomputed: bool = False
    ) -> Tensor:
        """Return [N, C] log-probabilities of the labels, for questions that `asked` lays out."""
        if self.label_rows is not None:
            rows = self.label_rows.rows
            predicted = self.model.predict(inserts, questions, is_recomputed=is_recomputed, rows=rows)
            logits = predicted.logits[predicted.at.reshape(len(questions), -1)[:, -1]]
            return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        predicted = self.model.predict(inserts, questions, self.words, is_recomputed)
        return self.verbalizer.label_scores(predicted.answer_log_probs(), predicted.lengths)

    def classify(self, rows: Sequence[TextRow]) -> list[LabelPrediction]:
        """Return the label of each row."""
        return label_predictions(self.verbalizer.labels, self.label_log_probs(rows))

    @property
    def verbalizer(self) -> Verbalizer:
        """The words of the labels; a prompt that generates text is refused."""
        if self.label_words is None:
            raise UserError("this prompt generates text and has no labels to tell apart. Use generate.")
        return self.label_words


def label_rows_of(prompted: LanguagePredictor) -> LabelRows | None:
    """Return the learned output rows of a prompt's labels, None where it compares words."""
    head, words = prompted.prompt.head, prompted.label_words
    if head is None:
        return None
    width = prompted.model.lm.get_output_embeddings().weight.shape[1]
    n_labels = 0 if words is None else len(words.labels)
    if not isinstance(head, LabelRows) or head.values.shape not in ((n_labels, width), (n_labels, width + 1)):
        found = f"a head of kind {getattr(head, 'kind', '?')!r}"
        expected = f"output rows of {n_labels} labels, {width} wide"
        raise UserError(f"the prompt has {found}, but {expected}, were expected. Train it on {prompted.model.name}.")
    if prompted.bound.behind or prompted.bound.n_answers > 1:
        raise UserError(
            "the template goes on behind {answer}, where words of labels are read, but a soft verbalizer has none. "
            "End it with {answer}."
        )
    return head


def label_predictions(labels: Sequence[str], log_probs: Tensor) -> list[LabelPrediction]:
    """Return what log-probabilities [N, C] of C labels come to."""
    found = []
    for scores in log_probs.exp().tolist():
        probabilities = dict(zip(labels, scores, strict=True))
        found.append(LabelPrediction(max(labels, key=lambda label: probabilities[label]), probabilities))
    return found


def parts_by_task(prompted: LanguagePredictor, rows: Sequence[TextRow]) -> list[tuple[int, int, Inserts]]:
    """Batch rows that follow one another and share a task: start, end, and what was learned for the task."""
    parts = []
    place = 0
    for task, some in groupby(rows, key=lambda row: row.task if prompted.tasks else ""):
        end = place + len(list(some))
        inserts = prompted.inserts(task)
        parts += [(start, min(end, start + BATCH), inserts) for start in range(place, end, BATCH)]
        place = end
    return parts


@torch.no_grad()
def classify_texts(prompted: Sequence[LanguagePredictor], rows: Sequence[TextRow]) -> list[LabelPrediction]:
    """Return the label of each row by a prompt of its own; prompts of equally many vectors are read in one batch.

    All prompts are of one frozen model and have labels; those of the rows are not looked at.
    """
    groups: dict[object, list[int]] = {}
    for place, one in enumerate(prompted):
        is_alone = one.changes_weights or one.tasks
        shapes = ((site, vectors.values.shape) for site, vectors in one.vectors().items()) if not is_alone else ()
        groups.setdefault(id(one) if is_alone else tuple(shapes), []).append(place)
    found: dict[int, LabelPrediction] = {}
    for places in groups.values():
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            predictions = _classify_alike([prompted[place] for place in some], [rows[place] for place in some])
            found |= zip(some, predictions, strict=True)
    return [found[place] for place in range(len(rows))]


def _classify_alike(each: Sequence[LanguagePredictor], rows: Sequence[TextRow]) -> list[LabelPrediction]:
    first, *others = each
    if all(other is first for other in others):
        return first.classify(rows)
    questions = [one.asked(row.fields) for one, row in zip(each, rows, strict=True)]
    vectors = {
        site: Vectors(torch.stack([one.vectors()[site].values for one in each]), "sample") for site in first.vectors()
    }
    each_words = [one.words for one in each if one.words is not None]
    words = torch.cat(each_words).unique() if len(each_words) == len(each) else None
    predicted = first.model.predict(vectors, questions, words)
    sizes = [len(one.answers) for one in each]
    pairs = zip(predicted.answer_log_probs().split(sizes), torch.tensor(predicted.lengths).split(sizes), strict=True)
    found = []
    for one, (scores, lengths) in zip(each, pairs, strict=True):
        of_labels = one.verbalizer.label_scores(scores, lengths.tolist())
        found += label_predictions(one.verbalizer.labels, of_labels)
    return found


def load(
    folder: Path, header: Mapping[str, Any], model: FrozenLanguageModel | str | None, device: str
) -> LanguagePredictor:
    """Load a language model with a saved prompt, whose header was read; see `core.file.load`."""
    load_named = partial(load_language_model, device=device, dtype=header.get("dtype", "auto"))
    frozen = model_of(folder, header, model, load_named)
    refuse_other_backbone(folder, header, frozen)
    prompt, _ = read_prompt(folder, header, frozen.device, Template.parse(header["template"]))
    if header.get("lora") is not None:
        problem = "holds LoRA in a folder of its own, as no released version wrote it"
        raise bad_file(folder, problem, "Train it again with --method prompt-tuning+lora.")
    words = None if header["verbalizer"] is None else Verbalizer.from_dict(header["verbalizer"])
    prompted = LanguagePredictor(frozen, prompt.requires_grad_(False).eval(), words)
    if prompted.bound.n_soft and LM_INPUT not in prompt.sites:
        raise bad_file(folder, f"has {prompted.bound.n_soft} soft slots in its template and no vectors", RESTORE)
    return prompted


def load_prompted(folder: Path | str, model: FrozenLanguageModel | str | None = None) -> LanguagePredictor:
    """Load what `core.file.load` does, of a language model alone."""
    read_header(folder, "language")
    prompted: LanguagePredictor = load_predictor(folder, model)
    return prompted
