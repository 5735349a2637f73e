"""A classifier without one of the vectors of its prompt: the slot is gone, and all others are where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmprompt.models.sites as sites
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.learned import Given, Inserts, Prompt, Source
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.sites import Site, TextSlots, Tower


class _Without(Source):
    """A source without one of the vectors that it gives to a tower."""

    def __init__(self, source: Source, tower: Tower, place: int) -> None:
        super().__init__()
        self.source, self.tower, self.place = source, tower, place
        self.sites, self.needs_image = source.sites, source.needs_image

    def forward(self, given: Given) -> Inserts:
        return sites.without_vector(self.source(given), self.tower, self.place)


class _ShorterTemplate:
    """A template with the slot of one vector left out of every line."""

    def __init__(self, template: ClassTemplate, place: int) -> None:
        self.text, self._whole, self._place = template.text, template, place

    @property
    def lines(self) -> tuple[Any, ...]:
        return tuple(_ShorterTemplate(line, self._place) for line in self._whole.lines)

    def slots(self, backbone: DualEncoder, class_names: Sequence[str]) -> TextSlots:
        gone = -1 - self._place
        rows = [self._whole.row(backbone, name) for name in class_names]
        return backbone.text_slots([[slot + (slot < gone) for slot in row if slot != gone] for row in rows])


def without_vector(classifier: Classifier, tower: Tower, place: int) -> Classifier:
    """Return a classifier with the slot of one vector left out, of all layers of a tower that have it.

    Args:
        classifier: of the ordinary form.
        tower: text or vision.
        place: of the vector, from 0.
    """
    prompt = classifier.prompt
    template: Any = prompt.template
    if tower == "text" and any(site == Site("text") for site in prompt.sites):
        template = _ShorterTemplate(template, place)
    sources = [_Without(source, tower, place) for source in prompt.sources]
    return Classifier(classifier.backbone, Prompt(template, *sources, head=prompt.head).eval(), classifier.class_names)
