"""What prompts of a language model are worth on rows held out, beside the model without one and beside instructions.

Where rows have labels, labels are told apart; where they have answers, answers are generated and compared: exact match,
BLEU, chrF and ROUGE-L, each by its usual library.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

import mmprompt.display as display
from mmprompt.core.learned import Prompt
from mmprompt.core.metrics import Evaluation, bootstrap_interval, evaluate_probabilities, paired_bootstrap
from mmprompt.core.template import Group
from mmprompt.errors import UserError, unknown_name
from mmprompt.language.data import Metric, TextData, TextRow
from mmprompt.language.generation import generate_texts
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.task import default_template, verbalizer_of
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import CONTENT_FREE, calibrate
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.image_features import Progress
from mmprompt.settings import checked

ROWS_AT_ONCE = 64
"""Rows between two looks at the progress."""
NO_PROMPT = "no prompt"


@dataclass(frozen=True)
class TextScores:
    """How well N generated texts fit the expected ones.

    Args:
        is_exact: [N] whether each text is the expected one; `interval` is its 95 % bootstrap interval over texts.
        bleu, chrf: of the whole corpus, 0..100 (Papineni et al. 2002; Popović 2015). BLEU is 0 where no text has four
            words in a row, so read chrF of short answers.
        rouge_each: [N] F measures of the longest common subsequence of words, 0..1 (Lin 2004).
        signatures: how sacrebleu computed `bleu` and `chrf`, to be printed beside the numbers.
    """

    is_exact: tuple[bool, ...]
    interval: tuple[float, float]
    bleu: float
    chrf: float
    rouge_each: tuple[float, ...]
    signatures: Mapping[str, str]

    @property
    def n(self) -> int:
        """Number of texts."""
        return len(self.is_exact)

    @property
    def exact_match(self) -> float:
        """Share of texts that are the expected ones, 0..1."""
        return sum(self.is_exact) / self.n

    @property
    def rouge_l(self) -> float:
        """Mean of `rouge_each`."""
        return sum(self.rouge_each) / self.n


def score_texts(texts: Sequence[str], expected: Sequence[str]) -> TextScores:
    """Compare N generated texts, perhaps empty ones, with one expected text each.

    A text is exact if it is the expected one but for blanks at its ends and the Unicode form of its letters; case and
    punctuation count.
    """
    if not texts or len(texts) != len(expected):
        raise UserError(
            f"there are {len(texts)} texts and {len(expected)} expected ones, but at least one of each and as many of "
            "both were expected. Give one expected text for each."
        )
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError(
            f"BLEU, chrF and ROUGE-L need sacrebleu and rouge-score, and {error.name} is not installed. "
            'Install them: pip install "mmprompt[llm]".'
        ) from None
    written, wanted = ([unicodedata.normalize("NFC", text.strip()) for text in each] for each in (texts, expected))
    is_exact = tuple(text == other for text, other in zip(written, wanted, strict=True))
    bleu, chrf = BLEU(), CHRF()
    rouge = RougeScorer(["rougeL"], tokenizer=_Words())
    rouge_each = [rouge.score(other, text)["rougeL"].fmeasure for text, other in zip(written, wanted, strict=True)]
    bleu_score, chrf_score = (metric.corpus_score(written, [wanted]).score for metric in (bleu, chrf))
    return TextScores(
        is_exact,
        bootstrap_interval(np.array(is_exact)),
        float(bleu_score),
        float(chrf_score),
        tuple(map(float, rouge_each)),
        {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())},
    )


class _Words:
    """The words of ROUGE in any script; rouge-score's own drops every letter beyond a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class LanguageScore:
    """What one prompt is worth: its template, of no prompt with soft slots empty, its answers to N rows, and either
    accuracy, macro F1 and confusion of labels, or exact match, BLEU, chrF and ROUGE-L of texts.
    """

    name: str
    template: str
    answers: tuple[str, ...]
    labels: Evaluation | None = None
    texts: TextScores | None = None
    metric: Metric = "exact"

    def __repr__(self) -> str:
        low, high = self.interval
        return f"<LanguageScore: {self.name}, {self.right.mean():.1%} right (95 % {low:.1%} to {high:.1%})>"

    def _repr_html_(self) -> str:
        low, high = self.interval
        title = f"{self.name}: {self.right.mean():.1%} right (95 % {low:.1%} to {high:.1%})"
        measured = self.labels or self.texts
        parts = [measured._repr_html_()] if isinstance(measured, Evaluation) else []
        return display.section(title, display.facts({"template": self.template}), *parts)

    @property
    def right(self) -> np.ndarray:
        """[N] booleans, whether each answer is the expected one."""
        if self.labels is not None:
            return self.labels.correct
        assert self.texts is not None, "one of both is there"
        return np.array(self.texts.is_exact)

    @property
    def degrees(self) -> np.ndarray:
        """[N] how right each answer is, 0..1, by the metric of the data."""
        is_rouge = self.texts is not None and self.metric == "rouge_l"
        return np.array(self.texts.rouge_each) if is_rouge else self.right  # type: ignore[union-attr]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share that is right."""
        measured = self.labels or self.texts
        assert measured is not None, "one of both is there"
        return measured.interval

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        found: dict[str, Any] = {"name": self.name, "template": self.template}
        if self.labels is not None:
            confusion = {"labels": list(self.labels.class_names), "counts": self.labels.confusion.tolist()}
            found |= {"accuracy": self.labels.accuracy, "interval": list(self.interval)}
            found |= {"macro_f1": self.labels.macro_f1, "per_label": self.labels.per_class, "confusion": confusion}
        if self.texts is not None:
            found |= {"exact_match": self.texts.exact_match, "interval": list(self.interval)}
            found |= {"bleu": self.texts.bleu, "chrf": self.texts.chrf, "rouge_l": self.texts.rouge_l}
            found |= {"signatures": dict(self.texts.signatures)}
        return found | {"answers": list(self.answers)}


@dataclass(frozen=True)
class LanguageGain:
    """By what share of the rows, with a 95 % interval paired over rows, one prompt is right more often than another."""

    of: str
    over: str
    gain: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class LanguageMeasure:
    """Several prompts on the same rows: the scores of learned prompts, of none, and of instructions, in this order.

    Attributes:
        is_calibrated: whether what the model answers to texts that say nothing was divided out, of every prompt.
        gains: of the first prompt over none and over the best instruction. The best is chosen on these very rows,
            which favours it.
        left_out: instructions that are chats, where the model has no template for chats.
    """

    model: str
    data: str
    split: str
    n_rows: int
    is_calibrated: bool
    scores: tuple[LanguageScore, ...]
    gains: tuple[LanguageGain, ...] = ()
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        plain = {name: getattr(self, name) for name in ("model", "data", "split", "n_rows", "is_calibrated")}
        scores = [score.to_dict() for score in self.scores]
        gains = [asdict(gain) for gain in self.gains]
        return plain | {"scores": scores, "gains": gains, "left_out": list(self.left_out)}


@checked
def compare_language(
    model: FrozenLanguageModel,
    prompts: Mapping[str, LanguagePredictor],
    data: TextData,
    split: str = "test",
    is_calibrated: bool = False,
    progress: Progress | None = None,
) -> LanguageMeasure:
    """Measure prompts beside the model without one and beside the hand-written instructions of the data.

    Args:
        model: the frozen model that the prompts are of.
        prompts: by name, perhaps none.
        data: rows and instructions.
        split: train, val or test.
        is_calibrated: as in `measure_language`.
        progress: called with how many answers there are and how many there will be.
    Raises:
        UserError: as in `measure_language`.
    """
    first = next(iter(prompts.values()), None)
    every = {**prompts, NO_PROMPT: plain_model(model, data, first)}
    # Chats are left out where the model's tokenizer has no template for chats.
    has_chat, left_out = bool(getattr(model.tokenizer, "chat_template", None)), []
    for number, text in enumerate(data.instructions, start=1):
        template = Template.instruction(text)
        if template.is_chat and not has_chat:
            left_out.append(text)
        else:
            every[f"instruction {number}"] = LanguagePredictor(model, Prompt(template), verbalizer_of(data))
    n_rows, scores = len(data.rows(split)), []
    for number, (name, prompted) in enumerate(every.items()):

        def tell(done: int, _: int, number: int = number) -> None:
            if progress is not None:
                progress(number * n_rows + done, len(every) * n_rows)

        scores.append(measure_language(prompted, data, split, name, is_calibrated, progress=tell))
    plain, *instructions = scores[len(prompts) :]
    others = [plain]
    if instructions:
        others.append(max(instructions, key=lambda score: int(score.right.sum())))  # of equals the first
    gains = []
    for other in others if prompts else []:
        low, high = paired_bootstrap(scores[0].right[None], other.right[None])
        gain = float(scores[0].right.mean() - other.right.mean())
        gains.append(LanguageGain(scores[0].name, other.name, gain, (low, high)))
    return LanguageMeasure(
        model.name, data.name, split, n_rows, is_calibrated, tuple(scores), tuple(gains), tuple(left_out)
    )


@checked
def measure_language(
    prompted: LanguagePredictor,
    data: TextData,
    split: str = "test",
    name: str = "prompt",
    is_calibrated: bool = False,
    generation: Generation | None = None,
    progress: Progress | None = None,
) -> LanguageScore:
    """Measure one prompt.

    Args:
        prompted: the frozen model and the prompt.
        data: the rows.
        split: train, val or test.
        name: what to call the prompt.
        is_calibrated: divide out what the model answers to texts that say nothing (see `verbalizer.calibrate`).
        generation: how answers are searched; by default greedily, as long as the longest expected one. Where no
            expected answer has several lines, what follows the first line is left away.
        progress: called with how many rows are done and how many there are.
    Raises:
        UserError: there are no rows, their labels are not those of the prompt, or something does not fit.
    """
    rows, template = data.rows(split), prompted.template.text
    if not rows:
        raise UserError(f"{data.name} has no {split} rows to measure on. Use another `split`.")
    refuse_other_rows(prompted, data)
    progress = progress or (lambda done, total: None)
    if data.labels:
        labels = prompted.verbalizer.labels
        prompted.say_cut(rows, max(map(len, prompted.answers)), f"{split} rows ({name})")
        probabilities = _label_probabilities(prompted, rows, is_calibrated, progress)
        measured = evaluate_probabilities(probabilities, [labels.index(row.label or "") for row in rows], labels)
        return LanguageScore(name, template, tuple(labels[place] for place in measured.predictions), labels=measured)
    if is_calibrated:
        raise UserError("calibration is for labels, but these rows have answers. Leave it out.")
    expected = [row.answer or "" for row in rows]
    settings = generation or as_long_as(prompted, expected)
    prompted.say_cut(rows, settings.max_tokens, f"{split} rows ({name})")
    texts: list[str] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        texts += [
            one.text for one in generate_texts(prompted, rows[start : start + ROWS_AT_ONCE], settings.from_row(start))
        ]
        progress(len(texts), len(rows))
    if not any("\n" in answer for answer in expected):
        texts = [text.partition("\n")[0].strip() for text in texts]
    return LanguageScore(name, template, tuple(texts), texts=score_texts(texts, expected), metric=data.metric)


def refuse_other_rows(prompted: LanguagePredictor, data: TextData) -> None:
    """Refuse rows with other labels than those of a prompt, or with answers where it tells labels apart."""
    for label in data.labels:
        if label not in prompted.verbalizer.labels:
            advice = "Use the `data` that the prompt was learned from."
            raise unknown_name("label of this prompt", label, prompted.verbalizer.labels, advice)
    if not data.labels and prompted.label_words is not None:
        raise UserError(f"this prompt tells labels apart, but the rows of {data.name} have answers. Use other `data`.")


@torch.no_grad()
def _label_probabilities(
    prompted: LanguagePredictor, rows: Sequence[TextRow], is_calibrated: bool, progress: Progress
) -> np.ndarray:
    """Return [N, C] probabilities of the labels, perhaps without what is answered to texts that say nothing."""
    if is_calibrated and prompted.label_rows is not None:
        raise UserError("calibration is for words of labels, but this prompt has learned rows instead. Leave it out.")
    parts = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        parts.append(prompted.label_log_probs(some))
        progress(start + len(some), len(rows))
    log_probs = torch.cat(parts)
    tasks = [row.task if prompted.tasks else "" for row in rows]
    fields = prompted.template.fields
    for task in dict.fromkeys(tasks if is_calibrated else ()):
        empty = [prompted.asked(dict.fromkeys(fields, text)) for text in CONTENT_FREE]
        predicted = prompted.model.predict(prompted.inserts(task), empty)  # among all tokens, not the labels' alone
        masses = prompted.verbalizer.label_masses(predicted.answer_log_probs(), predicted.lengths)
        is_its = torch.tensor([name == task for name in tasks], device=log_probs.device)
        log_probs[is_its] = calibrate(log_probs[is_its], masses)
    return log_probs.exp().double().cpu().numpy()


@checked
def evaluate(prompted: LanguagePredictor, data: TextData | Sequence[TextRow], split: str = "test") -> LanguageScore:
    """Measure what a prompt answers, on one part of the data or on single rows; see `core.fit.evaluate`."""
    if not isinstance(data, TextData):
        labels = tuple(sorted({row.label for row in data if row.label is not None}))
        data, split = TextData("rows", (), (), tuple(data), labels), "test"
    return measure_language(prompted, data, split)


def as_long_as(prompted: LanguagePredictor, answers: Sequence[str]) -> Generation:
    """Generation with one token more than the longest of some answers has."""
    return Generation(max_tokens=1 + max(map(len, prompted.bound.answers(answers))))


def plain_model(
    model: FrozenLanguageModel, data: TextData, prompted: LanguagePredictor | None = None
) -> LanguagePredictor:
    """Return the model without a prompt: with nothing in a learned template's soft slots, or with the data's own."""
    if prompted is not None and (prompted.prompt.sites or prompted.label_rows is not None):
        template, verbalizer = prompted.template, prompted.label_words
    else:
        template, verbalizer = Template.parse(data.template or default_template(data)), verbalizer_of(data)
    empty = replace(template, groups=tuple(Group(n_vectors=0) for _ in template.groups))
    return LanguagePredictor(model, Prompt(empty), verbalizer)
