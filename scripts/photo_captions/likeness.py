"""How well each of ImageNet's 1,000 classes goes with a noun, and with a whole scene: knowledge of words alone.

MiniLM compares names and definitions of the classes with the noun, and with all captions that hold it; SmolLM2 says
how much likelier the noun becomes where the class is in the photograph; WordNet says what is a kind of what. Together
they answer what an ImageNet classifier may see in a photograph of which people say the noun.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from photo_captions.scenes import Scene
from photo_text.sources import Nouns, imagenet_names, imagenet_offsets

BATCH = 128
MOST_GAIN = 5.0
"""Nats by which a class may make a noun likelier, at the most."""
ASKED = ("A photo of a {}. Also in the photo there is a", "The photo shows a {}, and next to it a")
SPOKEN = "a photo of a {}."


@dataclass(frozen=True)
class Weights:
    """How much each likeness counts in the softmax over classes."""

    words: float = 12.0
    gain: float = 1.2
    taxonomy: float = 4.0
    scene: float = 14.0


@torch.no_grad()
def sentence_vectors(model: torch.nn.Module, tokenizer: object, texts: list[str]) -> Tensor:
    """Embed texts as MiniLM is meant to: the mean over tokens [N, D], unit norm."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found = torch.empty(len(texts), model.config.hidden_size)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        tokens = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        found[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return F.normalize(found, dim=-1)


@torch.no_grad()
def noun_gains(lm: torch.nn.Module, tokenizer: object, nouns: list[str]) -> Tensor:
    """Nats by which each class makes each noun likelier as the next word: [V, 1000], 0..MOST_GAIN, mean of two ways."""
    firsts = [tokenizer(f" {noun}", add_special_tokens=False)["input_ids"] for noun in nouns]
    is_one = torch.tensor([len(ids) == 1 for ids in firsts])
    first, gains = torch.tensor([ids[0] for ids in firsts]), torch.zeros(())
    for asked in ASKED:
        texts = [asked.format(name.lower()) for name in imagenet_names()]
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        log_probs = torch.empty(len(nouns), len(rows))
        for length in sorted({len(row) for row in rows}):  # equally long, so that nothing is padded
            some = [place for place, row in enumerate(rows) if len(row) == length]
            for part in torch.tensor(some).split(BATCH):
                ids = torch.tensor([rows[place] for place in part.tolist()])
                log_probs[:, part] = lm(input_ids=ids, logits_to_keep=1).logits[:, -1].log_softmax(-1)[:, first].T
        gains = gains + log_probs - (log_probs.logsumexp(1, keepdim=True) - torch.tensor(1000.0).log())
    return (gains / len(ASKED)).clamp(0, MOST_GAIN) * is_one[:, None]


def taxonomy(nouns: Nouns, words: list[str]) -> Tensor:
    """Lin's similarity (Lin 1998) of the best of a word's first two meanings to each class: [V, 1000]; 0 if unknown."""
    leaves = imagenet_offsets()
    information = torch.tensor([nouns.information[leaf] for leaf in leaves])
    below: dict[int, Tensor] = {}
    for column, leaf in enumerate(leaves):
        for one in nouns.ancestors(leaf):
            below.setdefault(one, torch.zeros(len(leaves)))[column] = nouns.information[one]
    found = torch.zeros(len(words), len(leaves))
    for row, word in enumerate(words):
        for sense in nouns.senses.get(word, ())[:2]:
            shared = torch.stack([below[one] for one in nouns.ancestors(sense) if one in below]).amax(0)
            found[row] = torch.maximum(found[row], 2 * shared / (nouns.information[sense] + information))
    return found


def class_texts(nouns: Nouns) -> tuple[list[str], list[str]]:
    """What is said of each class: its name in a sentence, and its name with its definition."""
    names = [name.lower() for name in imagenet_names()]
    definitions = [nouns.synsets[offset].definition for offset in imagenet_offsets()]
    return [SPOKEN.format(name) for name in names], [f"{n}: {d}" for n, d in zip(names, definitions, strict=True)]


def centred(vectors: Tensor, mean: Tensor) -> Tensor:
    """Vectors without what all have in common, of unit norm."""
    return F.normalize(vectors - mean, dim=-1)


def word_likeness(spoken: Tensor, defined: Tensor, single: Tensor, rows: list[list[int]], captions: Tensor) -> Tensor:
    """Mean cosine [V, 1000] of nouns to classes.

    Args:
        spoken, defined: [1000, D] of the texts of `class_texts`.
        single: [V, D], of each noun in the same sentence.
        rows: by noun, the captions that hold it.
        captions: [N, D].
    """
    common = spoken.mean(0)
    held = centred(torch.stack([captions[some].mean(0) for some in rows]), captions.mean(0))
    parts = (
        centred(single, common) @ centred(spoken, common).T,
        held @ centred(spoken, common).T,
        held @ centred(defined, defined.mean(0)).T,
    )
    return torch.stack(parts).mean(0)


def scene_likeness(defined: Tensor, spoken: Tensor, scenes: list[Scene], captions: Tensor) -> Tensor:
    """Mean cosine [S, 1000] of scenes, as the mean of their captions, to classes."""
    means = torch.stack([part.mean(0) for part in captions.split([len(scene.captions) for scene in scenes])])
    means = centred(means, captions.mean(0))
    return sum(means @ centred(texts, texts.mean(0)).T for texts in (defined, spoken)) / 2
