"""What a language model generates with a prompt: answers to many rows, with prompts of any kind mixed, or one as it
comes.

What all rows of a prompt begin with is read once and handed over as keys and values, so a prompt costs nothing but
the look at it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
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
from mmprompt.settings import checked


@dataclass(frozen=True)
class Generated:
    """An answer that a model wrote, without blanks around it and without its end; it is cut where it stopped for want
    of room.
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
    """One answer to each row, in order.

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
    answers = generate(model, jobs_of(each, rows, settings.max_tokens), settings)
    texts = [model.tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in answers]
    n_most = settings.max_tokens
    return [Generated(text, len(ids), len(ids) >= n_most) for text, ids in zip(texts, answers, strict=True)]


def jobs_of(each: Sequence[LanguagePredictor], rows: Sequence[TextRow], n_answer: int) -> list[Job]:
    """The rows as they are read; what several rows of a prompt begin with is read once."""
    groups: dict[tuple[int, str], list[int]] = {}
    for place, (one, row) in enumerate(zip(each, rows, strict=True)):
        groups.setdefault((id(one), row.task if one.tasks else ""), []).append(place)
    jobs: dict[int, Job] = {}
    for (_, task), places in groups.items():
        one = each[places[0]]
        vectors = one.vectors(task)
        room = one.model.budget - one.n_prefix
        texts = [one.bound.encode(rows[place].fields, room, n_answer).slots for place in places]
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
    """Find what some texts begin with, up to the last vector of the prompt, and read it once for its keys and values.

    None where an encoder reads the prompt, or a vector stands behind what differs between texts.
    """
    model = prompted.model
    if model.is_encoder_decoder:
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
            kept = start, model.read_shared(prompted.vectors(task), start)
        prompted.compiled[task] = kept
    return kept


@checked
def stream_text(prompted: LanguagePredictor, row: TextRow, settings: Generation | None = None) -> Iterator[str]:
    """One answer, piece by piece as it is written.

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

    def work() -> None:
        try:
            generate(prompted.model, jobs, settings, streamer)
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if failures:
        raise failures[0]
