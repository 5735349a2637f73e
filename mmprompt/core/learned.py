"""What is learned: sources, each a module that gives what enters one or more sites, and the prompt that holds them.

A source may learn vectors directly, make them of others, or read the image. It knows no backbone and no loss.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.models.sites import Insert, Scope, Site, Tower, Vectors

Inserts = dict[Site, Insert]
LONGEST_SHOWN = 80


def made_with(part: nn.Module) -> dict[str, Any]:
    """Give the arguments that a source or head was made with, of each the attribute of its name."""
    given = inspect.signature(type(part)).parameters.values()
    return {
        one.name: getattr(part, one.name) for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }


@dataclass(frozen=True)
class Given:
    """What a source may look at, None for what is not there.

    Image features [B, E] are of unit norm, by the image tower with what is learned in it; a task is named for sources
    that hold one prompt a task.
    """

    image_features: Tensor | None = None
    task: str = ""


class Source(nn.Module):
    """A module whose call gives what enters its sites.

    Attributes:
        sites: where it enters; one source may serve many.
        needs_image: whether it reads `Given.image_features`, so that class features depend on the image.
        tasks: those that it holds a prompt for and reads `Given.task` for; () where one prompt serves all.
        kind: how a prompt file keeps it: `"vectors"` keeps those it gives and forgets how they were made; any other
            name keeps `settings` and state, and must be a key of `SOURCES` when the file is read.
    """

    kind: ClassVar[str] = "vectors"
    sites: tuple[Site, ...] = ()
    needs_image: bool = False
    tasks: tuple[str, ...] = ()
    if TYPE_CHECKING:

        def __call__(self, given: Given) -> Inserts:  # noqa: D102
            ...

    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments, JSON-ready, with which `SOURCES[kind]` makes a source of the same shapes."""
        return made_with(self)


class Learned(Source):
    """Vectors that are learned directly, in units of their own size where one learning rate is to serve any model.

    Args:
        site: where they enter.
        values: `"shared"` [M, D] or `"class"` [C, M, D]; where learning starts.
        scope: what the vectors are shared over.
        unit: the size of one step: a number, or one for each of the D; 1 by default.
    """

    unit: Tensor | None

    def __init__(self, site: Site, values: Tensor, scope: Scope = "shared", unit: Tensor | None = None) -> None:
        super().__init__()
        self.sites, self.scope = (site,), scope
        values = values.detach().clone().float()
        if unit is not None:
            unit = torch.where(unit > 0, unit, torch.ones_like(unit)).detach().float()
            values = values / unit
        self.register_buffer("unit", unit)
        self.values = nn.Parameter(values)

    @property
    def vectors(self) -> Tensor:
        """The vectors as they are now, in the model's own size."""
        return self.values if self.unit is None else self.values * self.unit

    def forward(self, given: Given) -> Inserts:
        """Give the vectors as they are now."""
        return {self.sites[0]: Vectors(self.vectors, self.scope)}


@dataclass(frozen=True)
class Outputs:
    """What one step of a classifier puts out.

    Args:
        logits: [B, C], already multiplied by the linear `logit_scale`.
        labels: [B] int64 in 0..C-1; None where nothing is known of the images.
        image_features: [B, E] of unit norm.
        class_features: [C, E] of unit norm, or [B, C, E] where they depend on the image.
        frozen: the same images by the backbone without anything learned, for methods with a teacher.
        head: what made the logits of the features.
    """

    logits: Tensor
    labels: Tensor | None
    image_features: Tensor
    class_features: Tensor
    frozen: Outputs | None = None
    head: nn.Module | None = None


class Template(Protocol):
    """What stands around the learned vectors, in words.

    Attributes:
        text: as it is written, and kept in files.
    """

    @property
    def text(self) -> str:
        """See the class."""
        ...


class Prompt(nn.Module):
    """All that is learned: sources at sites of a frozen model, perhaps a head, and the template around them.

    Args:
        template: the words around the vectors.
        sources: no two serve the same site.
        head: from features to logits, for methods that learn one; the cosine of the backbone where there is none.
    Raises:
        UserError: two sources serve the same site, or one that reads the image serves the image tower.
    """

    def __init__(self, template: Template, *sources: Source, head: nn.Module | None = None) -> None:
        super().__init__()
        self.template = template
        self.sources: list[Source] = nn.ModuleList(sources)  # type: ignore[assignment]
        self.head = head
        sites = [site for source in sources for site in source.sites]
        self.sites = tuple(sorted(set(sites)))
        twice = sorted(site for site in self.sites if sites.count(site) > 1)
        if twice:
            names = ", ".join(map(str, twice))
            raise UserError(f"two sources both learn at {names}. Combine methods that learn at different sites.")
        for source in self.sources:
            inside = [site for site in source.sites if site.tower == "vision"]
            if source.needs_image and inside:
                raise UserError(
                    f"{type(source).__name__} reads the image features, but learns at {inside[0]}, of which they are "
                    "made. Give it sites of the text tower alone."
                )

    def facts(self) -> dict[str, object]:
        """Say what a notebook shows of a prompt: its template, where it enters, how much it holds."""
        text = self.template.text
        n_learned = sum(value.numel() for value in self.parameters())
        head = "" if self.head is None else type(self.head).__name__
        sites = ", ".join(dict.fromkeys(str(site) for site in self.sites))
        shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
        return {"template": shown, "learned at": sites, "head": head, "learned numbers": f"{n_learned:,}"}

    def inserts(self, tower: Tower | None = None, given: Given | None = None) -> Inserts:
        """Give what enters all sites, or those of one tower; `given` is what sources may look at."""
        given = given or Given()
        inserts: Inserts = {}
        for source in self.sources if tower is None else self.sources_of(tower):
            inserts |= source(given)
        return {site: insert for site, insert in inserts.items() if tower in (None, site.tower)}

    def has(self, tower: Tower) -> bool:
        """Whether something learned enters this tower; where nothing does, its features never change."""
        return any(site.tower == tower for site in self.sites)

    def sources_of(self, tower: Tower) -> list[Source]:
        """List the sources that serve a tower."""
        return [source for source in self.sources if any(site.tower == tower for site in source.sites)]

    @property
    def needs_image(self) -> bool:
        """Whether a source reads the image, so that class features are another for each."""
        return any(source.needs_image for source in self.sources)

    @property
    def is_class_specific(self) -> bool:
        """Whether vectors or the head belong to single classes, so that other class names cannot be used."""
        return any(getattr(source, "scope", "") == "class" for source in self.sources) or (
            getattr(self.head, "is_class_specific", False)
        )

    def sharing_sources(self, template: Template, head: nn.Module | None) -> Prompt:
        """Return a prompt of the same sources with another template, and a copy of a head that learns on its own."""
        return Prompt(template, *self.sources, head=copy.deepcopy(head)).train(self.training)

    def join(self, other: Prompt) -> Prompt:
        """Return one prompt that holds the sources of both, among the words of this one.

        Raises:
            UserError: both learn at the same site, or both have a head.
        """
        if self.head is not None and other.head is not None:
            raise UserError("two methods both learn a head, but a classifier has one. Leave one of them out.")
        return Prompt(self.template, *self.sources, *other.sources, head=self.head or other.head)


def random_vectors(shape: tuple[int, ...], generator: torch.Generator, std: float = 0.02) -> Tensor:
    """Draw the published random start N(0, 0.02) on the CPU, so that every device starts from the same bytes."""
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def rms(values: Tensor) -> Tensor:
    """Compute the root mean square of all numbers."""
    return values.square().mean().sqrt()
