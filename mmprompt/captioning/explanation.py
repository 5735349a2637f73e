"""What a captioner's prompt has learned, section by section; `reports.explanation.explain` calls it for a run.

Everything is measured on images held out and their captions of the focus; words are chosen on the training images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprompt.captioning.choice import with_val_in_train
from mmprompt.captioning.data import CaptionData, CaptionItem, load_captions, shown_name
from mmprompt.captioning.focus_sets import build_focus
from mmprompt.captioning.measure import focus_loss, wordings_for
from mmprompt.captioning.metrics.tokens import tokenize
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, Guidance, focus_of, hard_prompt
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.report import whole_in_square
from mmprompt.captioning.search import prompt_slots
from mmprompt.captioning.task import encode_captions
from mmprompt.core.words import greedy_words, nearest_by_cosine, token_gaps
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.models.sites import Insert, Site, vectors_of, without_vector
from mmprompt.reports.explanation import Asked, Picture, Section
from mmprompt.reports.explanation_figures import draw_maps
from mmprompt.reports.sections import evenly, kept_of, words_section, worth_section
from mmprompt.reports.tables import counted

MOST_IMAGES, MOST_CHOOSING = 96, 32
"""Images that are looked at, and that words are chosen on, evenly taken."""
N_SHOWN, N_MAPPED, N_WORDS = 8, 6, 24
N_CANDIDATES = 10
Inserts = Mapping[Site, Insert]


def data_at(place: Mapping[str, Any], training: Mapping[str, Any]) -> CaptionData:
    """Load captions from where `place_of_data` says that they lie, those of the focus chosen as they were."""
    data = load_captions(place["data"], place.get("root"), bool(place.get("skip_broken")))
    return build_focus(data, training.get("data", {}).get("focus", "")) if place.get("choose") else data


def sections_of(captioner: Captioner, data: CaptionData, asked: Asked) -> tuple[str, list[Section]]:
    """Return the headline and all sections."""
    focus = focus_of(captioner.prompt)
    held_out = [item for item in data.with_captions(asked.split, None) if item.of(focus)]
    if not held_out:
        raise UserError(
            f"{data.name} has no {asked.split} images with captions of {shown_name(focus)}. Use another `split`."
        )
    learned_from = asked.training.get("data", {}).get("fingerprint")
    if asked.split == "val" and with_val_in_train(data).fingerprint == learned_from:
        raise UserError(
            "this run learned from the val part too, but images held out are looked at. Use `split='test'`."
        )
    look = _Look(captioner, data, evenly(held_out, MOST_IMAGES), asked)
    bare, learned = look.loss({}), look.loss(look.inserts)
    headline = f"A token of the captions of {shown_name(focus)} costs {learned:.2f} nats with the prompt and "
    headline += f"{bare:.2f} without."
    sections = [
        look.words(),
        look.worth(learned),
        look.said(),
        look.maps(),
        look.in_words() if asked.to_words else None,
    ]
    return headline, [section for section in sections if section is not None]


class _Look:
    """A captioner, images that it is looked at on, and their features."""

    def __init__(self, captioner: Captioner, data: CaptionData, items: list[CaptionItem], asked: Asked) -> None:
        self.captioner, self.data, self.items, self.asked = captioner, data, items, asked
        self.backbone: FrozenCaptioner = captioner.backbone
        self.focus, self.inserts = focus_of(captioner.prompt), captioner.prompt.inserts()
        self.features = CaptionFeatures(self.backbone, progress=asked.count("encoding images"))
        self.encoded = self.features.of([item.image for item in items])
        self.seen = f"of {counted(len(items), 'image')} {asked.seen}"

    def loss(self, inserts: Inserts, items: list[CaptionItem] | None = None) -> float:
        """Return the cross entropy of the focus's captions, in nats a token."""
        return focus_loss(self.features, items or self.items, self.focus, inserts, self.room(inserts))

    def room(self, inserts: Inserts) -> int:
        """Return how many tokens of a caption are looked at: no more than there is room for beside the prompt."""
        return self.backbone.decoder.budget - max(prompt_slots(inserts), prompt_slots(self.inserts))

    @property
    def context(self) -> Tensor | None:
        """The vectors [M, D] among the decoder's tokens, if there are some."""
        vectors = vectors_of(self.inserts).get(LM_INPUT)
        return None if vectors is None else vectors.values.detach()

    def _near(self, k: int) -> list[list[tuple[str, float]]]:
        decoder, tokenizer, context = self.backbone.decoder, self.backbone.tokenizer, self.context
        assert context is not None, "there are vectors"
        special = {*decoder.start_ids, decoder.end_id}
        near = nearest_by_cosine(context, decoder.embed, decoder.vocabulary_size, k, special)
        return [[(tokenizer.decode([token]) or "·", cosine) for token, cosine in row] for row in near]

    def words(self) -> Section | None:
        if self.context is None:
            return None
        decoder, decode = self.backbone.decoder, self.backbone.tokenizer.decode
        near = [(f"vector {place}", row) for place, row in enumerate(self._near(self.asked.k), 1)]
        real = token_gaps(decoder.embed, decoder.vocabulary_size, self.backbone.device, lambda token: decode([token]))
        return words_section(near, real, is_distance=False)

    def worth(self, learned: float) -> Section | None:
        """Leave each vector out: those among the tokens, and keys and values, in all blocks at once."""
        vectors = vectors_of(self.inserts)
        n_soft = 0 if self.context is None else len(self.context)
        n_prefix = max((one.n_vectors for site, one in vectors.items() if site.tower == "lm.kv"), default=0)
        places = [("lm", place) for place in range(n_soft)] + [("lm.kv", place) for place in range(n_prefix)]
        if not places:
            return None
        progress, names, losses = self.asked.count("leaving vectors out"), [], []
        for done, (tower, place) in enumerate(places, 1):
            names.append(f"{'vector' if tower == 'lm' else 'keys and values'} {place + 1}")
            losses.append(self.loss(without_vector(self.inserts, tower, place)) - learned)
            progress(done, len(places))
        return worth_section(names, losses, None, f"of the captions {self.seen}")

    def said(self) -> Section:
        """Say which words come and go, and show some captions with and without."""
        guidance = Guidance(((self.captioner.prompt, 1.0),))
        told = [
            [one.text for one in Captioner(self.backbone).caption_features(self.encoded, each)]
            for each in (Guidance(), guidance)
        ]
        before, after = (Counter(word for text in texts for word in set(tokenize(text))) for texts in told)
        n = len(self.items)
        changed = sorted(before | after, key=lambda word: (-abs(after[word] - before[word]), word))[:N_WORDS]
        rows = [(word, before[word] / n, after[word] / n, (after[word] - before[word]) / n) for word in changed]
        rows = sorted((row for row in rows if row[3]), key=lambda row: -row[3])
        more, less = ([row[0] for row in some if sign * row[3] > 0][:4] for some, sign in ((rows, 1), (rows[::-1], -1)))
        n_same = sum(old == new for old, new in zip(*told, strict=True))
        said = f"{n - n_same} of {n} captions change. "
        said += f"More often it says {', '.join(more)}. " if more else ""
        said += f"Less often {', '.join(less)}." if less else ""
        shown: list[Picture] = []
        for item, old, new in zip(self.items, *told, strict=True):
            if len(shown) < N_SHOWN:
                try:
                    shown.append(Picture(whole_in_square(read_image(item.image)), new, f"without: {old}"))
                except UserError:
                    continue
        note = f"Shares of captions {self.seen} that hold a word; those that changed most."
        columns = {"word": "", "without": "percent", "with the prompt": "percent", "more often": "signed"}
        return Section("said", "What it says that it did not say before", said, note, columns, rows, pictures=shown)

    def maps(self) -> Section | None:
        """Show where in the image the captions of the focus have their evidence, with and without the prompt."""
        side = math.isqrt(self.encoded.shape[1])
        if side < 2 or side**2 < self.encoded.shape[1] - 1 or self.backbone.decoder.slot == "encoder":
            return None
        items, encoded = self.items[:N_MAPPED], self.encoded[:N_MAPPED]
        texts = [item.of(self.focus)[0] for item in items]
        maps, words = [], [[self.backbone.tokenizer.encode(text)] for text in texts]
        ids = [ids for (ids,) in encode_captions(self.backbone, words, self.room(self.inserts)).token_ids]
        for name, inserts in (("without", {}), ("learned", self.inserts)):
            found = evidence(self.backbone, encoded, inserts, ids)
            maps.append((name, found[:, -(side**2) :].unflatten(1, (side, side)).numpy()))
        alike = [float(np.corrcoef(*(each[n].ravel() for _, each in maps))[0, 1]) for n in range(len(items))]
        images = [whole_in_square(read_image(item.image)) for item in items]
        said = f"What the captions of {shown_name(self.focus)} rest on. The maps with and without the prompt correlate "
        said += f"by {np.mean(alike):.2f} on average: near 1, the prompt looks at the same places."
        rows = [(item.image_id, text, each) for item, text, each in zip(items, texts, alike, strict=True)]
        chart = partial(draw_maps, images, texts, maps)
        note = "Gradient times input at the image features that the decoder reads, of a caption that people wrote. "
        note += "Features of a transformer mix places: read a map roughly."
        columns = {"image": "", "caption": "", "maps alike": ".2f"}
        return Section("maps", "Where it looks", said, note, columns, rows, {"Images with maps of relevance": chart})

    def in_words(self) -> Section:
        """Put the vectors into words, chosen on the training images, and measure them on those held out."""
        title = "The prompt in words"
        items = (
            evenly([item for item in self.data.train if item.of(self.focus)], MOST_CHOOSING) if self.data.train else []
        )
        if self.context is None or not items:
            said = (
                "It cannot be put into words: there are no vectors among the tokens, or no images to choose words on."
            )
            return Section("in_words", title, said)

        def spoken(words: Sequence[str]) -> Inserts:
            text = " ".join(filter(None, words))
            return hard_prompt(self.backbone, self.focus, text).inserts() if text else {}

        candidates = [[word for word, _ in row] + [""] for row in self._near(N_CANDIDATES)]
        count = self.asked.count("putting it into words")
        best = greedy_words(candidates, lambda words: self.loss(spoken(words), items), count)
        ways = {"nearest words": [row[0] for row in candidates], "best words near": best}
        ways |= {f"hand-written {n}": [words] for n, words in enumerate(wordings_for(self.focus), 1)}
        losses = {"soft prompt": self.loss(self.inserts)} | {
            name: self.loss(spoken(some)) for name, some in ways.items()
        }
        losses["no prompt"] = self.loss({})
        rows = [(name, " ".join(filter(None, ways.get(name, ()))), value) for name, value in losses.items()]
        soft, words, bare = (losses[name] for name in ("soft prompt", "best words near", "no prompt"))
        said = f"As “{' '.join(filter(None, best))}” a token of the captions costs {words:.2f} nats, as vectors "
        said += f"{soft:.2f} "
        said += f"and without a prompt {bare:.2f}" + kept_of(-words, -soft, -bare)
        note = f"Words were chosen among the {N_CANDIDATES} nearest to each vector and none, by the captions of "
        note += f"{counted(len(items), 'training image')}; the numbers are {self.seen}."
        return Section("in_words", title, said, note, {"": "", "words": "", "nats a token": ".3f"}, rows)


def evidence(
    captioner: FrozenCaptioner, features: Tensor, inserts: Inserts, captions: Sequence[tuple[int, ...]]
) -> Tensor:
    """Compute what each image token adds to the log-probability of a caption: |gradient times input|, [N, T] float32.

    Of N captions with their ends, for features [N, T, D'] of `encode_image` that the decoder reads alone.
    """
    found = []
    for row, ids in enumerate(captions):
        image = features[row : row + 1].detach().clone().requires_grad_()
        wanted = torch.tensor([ids], device=captioner.device)
        with torch.enable_grad():
            log_probs = captioner.logits(captioner.open(image), inserts, wanted).float().log_softmax(-1)
            (gradient,) = torch.autograd.grad(log_probs.gather(2, wanted[..., None]).sum(), image)
        found.append((gradient * image).detach().float().sum(-1).abs()[0])
    return torch.stack(found).cpu()
