"""The texts the vocabulary is learnt from: every name, keyword and template that pretraining may say."""

from openart import words
from openart.concepts import Concept

N_MERGES = 2048


def corpus(concepts: list[Concept]) -> list[str]:
    """One text per name, keyword, attribute and template; novel names too, so that they are spelt in whole pieces."""
    texts = []
    for concept in concepts:
        texts += [concept.name] * 4 + [concept.kind] * 2 + concept.tags + [concept.emotion, concept.action]
    for templates in words.TEMPLATES.values():
        texts += [t.format("") for t in templates] * 50
    return texts + list(words.BACKGROUNDS) * 10
