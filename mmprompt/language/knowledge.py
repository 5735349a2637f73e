"""A verbalizer of many words a label, refined and calibrated by texts without labels (Hu et al. 2022, "KPT")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Ge, Lt

from mmprompt.errors import UserError
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.settings import checked


@checked
@torch.no_grad()
def calibrate_words(
    prompted: LanguagePredictor, rows: Sequence[TextRow], cutoff: Annotated[float, Ge(0), Lt(1)] = 0.5
) -> LanguagePredictor:
    """Give each word of a prompt's labels its prior, and leave out the words that are hardly ever an answer.

    The prior of a word is its mean probability over texts that stand for all there may be; it is divided out of what
    is answered, as in Hu et al. 2022, section 3.3 (contextualised calibration). Words of the lowest priors are left
    out first (frequency refinement); of each label the likeliest word stays.

    Args:
        prompted: a model with a prompt and a verbalizer, often of many words a label.
        rows: texts, whose labels are not looked at; a few hundred at best.
        cutoff: share of all words that is left out.
    Returns:
        the same prompt with the new verbalizer, which its file keeps.
    Raises:
        UserError: there are no rows, or the prompt generates text.
    """
    if prompted.label_rows is not None:
        raise UserError("words are calibrated, but a soft verbalizer has learned rows in their place. Use it as it is.")
    if not rows:
        raise UserError("words are calibrated with texts, but there are none. Give some rows.")
    verbalizer, total = prompted.verbalizer, None
    words = list(verbalizer.flat)
    for row, found in zip(rows, prompted.answer_log_probs(rows, [words] * len(rows)), strict=True):
        lengths = [len(ids) for ids in prompted.asked(row.fields).answers]
        scores = verbalizer.word_scores(found[None].double(), lengths)[0]
        total = scores if total is None else torch.logaddexp(total, scores)
    assert total is not None, "there are rows"
    priors = dict(zip(words, (total - torch.tensor(len(rows)).log()).tolist(), strict=True))
    last_out = sorted(priors.values())[: int(cutoff * len(words))]
    limit = last_out[-1] if last_out else float("-inf")
    kept: dict[str, tuple[str, ...]] = {}
    for label, some in verbalizer.words.items():
        scored = [word for word in some if word in priors]
        best = max(scored, key=lambda word: priors[word])
        kept[label] = tuple(word for word in scored if priors[word] > limit or word == best)
    log_priors = tuple(priors[word] for some in kept.values() for word in some)
    refined: Verbalizer = replace(verbalizer, words=kept, log_priors=log_priors)
    return LanguagePredictor(prompted.model, prompted.prompt, refined)
