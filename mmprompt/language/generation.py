"""Texts that a frozen language model writes, at once or piece by piece, to rows with a prompt each.

What all rows of a prompt begin with is read once and handed over as keys and values, so a prompt costs nothing but the
look at it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.models.decoder.generation import Job, generate, job_of
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.model import shared_start
from mmprompt.models.decoder.packing import Question
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.settings import checked


@dataclass(frozen=True)
class Generated:
    """An answer that a model wrote, without blanks around it and without its end, a text of `stop` among it; cut where
    it stopped for want of room.
    """

    text: str
    n_tokens: int
    is_cut: bool


@checked
def generate_texts(
    prompted: LanguagePredictor | Sequence[LanguagePredictor],
    rows: Sequence[TextRow],
    settings: Generation | None = None,
) -> list[Generated]:
    """Write one answer to each row, in order.

    Args:
        prompted: one for all rows, or one for each row, all with the same frozen model.
        rows: N rows; their own answers are not looked at.
        settings: how answers are searched.
    Raises:
        UserError: the prompts are of several models, or a row does not fit.
    """
    settings = settings or Generation()
    each = [prompted] * len(rows) if isinstance(prompted, LanguagePredictor) else list(prompted)
    if len(each) != len(rows):
        raise UserError(
            f"there are {len(rows)} rows and {len(each)} prompts, but one prompt a row was expected. "
            "Give one for all, or one for each."
        )
    if len({id(one.model) for one in each}) > 1:
        raise UserError("the prompts are of several models, but one batch has one model. Load them on the same model.")
    if not rows:
        return []
    model = each[0].model
    groups: dict[int, list[int]] = {}  # rows of prompts that change weights are a batch of their own
    for place, one in enumerate(each):
        groups.setdefault(id(one) if one.changes_weights else 0, []).append(place)
    jobs = jobs_of(each, rows, settings.max_tokens)
    answers: dict[int, tuple[int, ...]] = {}
    for places in groups.values():
        inserts = each[places[0]].inserts() if each[places[0]].changes_weights else {}
        found = generate(model, [jobs[place] for place in places], settings, inserts=inserts)
        answers |= zip(places, found, strict=True)
    ids = [answers[place] for place in range(len(rows))]
    wholes = [model.tokenizer.decode(list(some), skip_special_tokens=True) for some in ids]
    texts = ["".join(until(settings.stop, [whole])) for whole in wholes]
    n_most = settings.max_tokens
    return [
        Generated(text.strip(), len(some), len(some) >= n_most and text == whole)
        for text, whole, some in zip(texts, wholes, ids, strict=True)
    ]


def until(stop: Sequence[str], pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text up to the first of some texts, which may begin in one piece and end in another."""
    held = ""
    for piece in pieces:
        held += piece
        places = [place for text in stop if (place := held.find(text)) >= 0]
        if places:
            yield held[: min(places)]
            return
        n_open = max((n for text in stop for n in range(1, len(text)) if held.endswith(text[:n])), default=0)
        yield held[: len(held) - n_open]
        held = held[len(held) - n_open :]
    yield held


def jobs_of(each: Sequence[LanguagePredictor], rows: Sequence[TextRow], n_answer: int) -> list[Job]:
    """Lay out rows as they are read; what several rows of a prompt begin with is read once."""
    groups: dict[tuple[int, str], list[int]] = {}
    for place, (one, row) in enumerate(zip(each, rows, strict=True)):
        groups.setdefault((id(one), row.task if one.tasks else ""), []).append(place)
    jobs: dict[int, Job] = {}
    for (_, task), places in groups.items():
        one = each[places[0]]
        if one.bound.behind:
            raise UserError("this template goes on behind {answer}, so labels are predicted and no text is written.")
        vectors = one.vectors(task)
        room = one.model.budget - one.n_prefix
        texts = [one.bound.encode(rows[place].fields, room, n_answer) for place in places]
        start = compiled_start(one, task, texts)
        for place, slots in zip(places, texts, strict=True):
            if start is None:
                jobs[place] = job_of(one.model, vectors, slots)
            else:
                jobs[place] = Job(start[1], slots[len(start[0]) :])
    return [jobs[place] for place in range(len(rows))]


def compiled_start(
    prompted: LanguagePredictor, task: str, texts: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], KVCache] | None:
    """Read once what some texts begin with, up to the last vector of the prompt, for its keys and values.

    None where prompt and text are read together, or a vector stands behind what differs between texts.
    """
    model = prompted.model
    if not isinstance(model.reader, CausalReader):
        return None
    shared = shared_start([Question(text, ()) for text in texts])
    if any(slot < 0 for text in texts for slot in text[len(shared) :]):
        return None
    n_prompt = max((place + 1 for place, slot in enumerate(shared) if slot < 0), default=0)
    start = shared[:n_prompt]
    kept = prompted.compiled.get(task)
    is_learning = any(parameter.requires_grad for parameter in prompted.prompt.parameters())
    if kept is None or kept[0] != start or is_learning:
        with torch.no_grad():
            kept = start, model.read_shared(prompted.inserts(task), start)
        prompted.compiled[task] = kept
    return kept


@checked
def stream_text(prompted: LanguagePredictor, row: TextRow, settings: Generation | None = None) -> Iterator[str]:
    """Yield one answer, piece by piece as it is written.

    Args:
        prompted: the model and its prompt.
        row: what is answered.
        settings: greedy or sampled; beams cannot be streamed.
    Raises:
        UserError: beams were asked for, or the row does not fit.
    """
    from transformers import TextIteratorStreamer

    settings = settings or Generation()
    if settings.n_beams > 1:
        raise UserError("an answer of several beams is known only at its end. Use `n_beams=1`, or do not stream.")
    jobs = jobs_of([prompted], [row], settings.max_tokens)
    streamer = TextIteratorStreamer(prompted.model.tokenizer, skip_prompt=True, skip_special_tokens=True)
    failures: list[BaseException] = []

    is_left = threading.Event()

    def work() -> None:
        try:
            generate(prompted.model, jobs, settings, streamer, prompted.inserts(), is_left.is_set)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in until(settings.stop, streamer) if piece)
    finally:  # whoever stops listening stops the answer
        is_left.set()
        thread.join()
    if failures:
        raise failures[0]
