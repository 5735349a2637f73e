"""What is learned: sources, each a module that gives what enters one or more sites, heads from features to logits, and
the prompt that holds them.

A source may learn vectors directly, make them of others, or read the image. It knows no backbone and no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.models.sites import Insert, Scope, Site, Tower, Vectors

Inserts = dict[Site, Insert]
LM_INPUT = Site("lm")


@dataclass(frozen=True)
class Given:
    """What a source may look at.

    Args:
        image_features: [B, E] of unit norm, by the image tower with what is learned in it; None where none are there.
        task: the name of a task, for sources that hold one prompt a task.
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
        return {}


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


class MadePrefix(Source):
    """Keys and values of all blocks that one MLP makes (Li and Liang 2021, "Prefix-Tuning", section 4.3).

    Args:
        start: [M, 2 H D/H] of each block, where learning starts.
        units: [2 H D/H] or a scalar of each block, the size of these numbers.
        hidden: width of the MLP.
    """

    start: Tensor
    units: Tensor

    def __init__(self, start: Sequence[Tensor], units: Sequence[Tensor], hidden: int) -> None:
        super().__init__()
        n_vectors, width = start[0].shape
        self.sites = tuple(Site("lm.kv", layer) for layer in range(len(start)))
        self.register_buffer("start", torch.cat(list(start), dim=1).float())
        self.register_buffer("units", torch.cat([unit.expand(width) for unit in units]).float())
        self.inputs = nn.Parameter(torch.randn(n_vectors, hidden))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), zero_linear(hidden, width * len(start)))

    def forward(self, given: Given) -> Inserts:
        """Give the keys and values of all blocks as they are now."""
        values = self.start + self.units * self.mlp(self.inputs)
        parts = values.chunk(len(self.sites), dim=1)
        return {site: Vectors(part) for site, part in zip(self.sites, parts, strict=True)}


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """Make a linear layer that gives zeros before it learns."""
    layer = nn.Linear(n_in, n_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


SOURCES: dict[str, Callable[..., Source]] = {}
"""The kinds of sources that a prompt file may name, beside vectors; a source of your own is added here."""


class Head(nn.Module):
    """A module from image features [B, E] and class features, both of unit norm, to logits [B, C].

    Attributes:
        kind: the name under which a prompt file keeps its settings and state; a key of `HEADS` when it is read.
        is_class_specific: whether it belongs to the classes it was made for, so that no others can be named.
    """

    kind: ClassVar[str] = ""
    is_class_specific: bool = True
    if TYPE_CHECKING:

        def __call__(self, image_features: Tensor, class_features: Tensor) -> Tensor:  # noqa: D102
            ...

    def settings(self) -> dict[str, Any]:
        """Give the keyword arguments, JSON-ready, with which `HEADS[kind]` makes a head of the same shapes."""
        return {}


class Cosine(Head):
    """The scaled cosine (Radford et al. 2021, "Learning Transferable Visual Models", section 2.3); it learns nothing.

    Args:
        scale: linear multiplier, about 100 for CLIP.
        bias: added to the logits (SigLIP).
    """

    is_class_specific = False

    def __init__(self, scale: float, bias: float = 0.0) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C] from class features [C, E], or [B, C, E] where they depend on the image."""
        if class_features.dim() == 2:
            return self.scale * image_features @ class_features.T + self.bias
        return self.scale * torch.einsum("be,bce->bc", image_features, class_features) + self.bias


class ClassMeans(Head):
    """The scaled cosine to a vector of each class.

    Args:
        n_classes: C.
        width: E.
        scale, bias: as of the cosine.
    """

    kind = "class-means"

    def __init__(self, n_classes: int, width: int, scale: float, bias: float) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        self.means = nn.Parameter(torch.zeros(n_classes, width), requires_grad=False)

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {"n_classes": len(self.means), "width": self.means.shape[1], "scale": self.scale, "bias": self.bias}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return self.scale * image_features @ self.means.to(image_features.dtype).T + self.bias


class Linear(Head):
    """A linear map of image features, in double precision as its solver has it.

    Args:
        n_classes: C.
        width: E.
    """

    kind = "linear"

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_classes, width, dtype=torch.float64), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(n_classes, dtype=torch.float64), requires_grad=False)

    def settings(self) -> dict[str, Any]:
        """See `Head`."""
        return {"n_classes": self.weight.shape[0], "width": self.weight.shape[1]}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Compute logits [B, C]; class features are not looked at."""
        return F.linear(image_features.double(), self.weight, self.bias)


HEADS: dict[str, Callable[..., Head]] = {"class-means": ClassMeans, "linear": Linear}
"""The kinds of heads that a prompt file may name; a head of your own is added here."""


@dataclass(frozen=True)
class Outputs:
    """What one step of a classifier puts out.

    Args:
        logits: [B, C], already multiplied by the linear `logit_scale`.
        labels: [B] int64 in 0..C-1; None where nothing is known of the images.
        image_features: [B, E] of unit norm.
        class_features: [C, E] of unit norm, or [B, C, E] where they depend on the image.
        frozen: the same images by the backbone without anything learned, for methods with a teacher.
    """

    logits: Tensor
    labels: Tensor | None
    image_features: Tensor
    class_features: Tensor
    frozen: Outputs | None = None


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

    def inserts(self, tower: Tower | None = None, given: Given | None = None) -> Inserts:
        """Give what enters all sites, or those of one tower.

        Args:
            tower: whose sites; None for all.
            given: what sources may look at.
        """
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

    def join(self, other: Prompt) -> Prompt:
        """Return one prompt that holds the sources of both, with the template of the one that learns in the text.

        Raises:
            UserError: both learn at the same site, or both have a head.
        """
        if self.head is not None and other.head is not None:
            raise UserError("two methods both learn a head, but a classifier has one. Leave one of them out.")
        template = other.template if other.has("text") else self.template
        return Prompt(template, *self.sources, *other.sources, head=self.head or other.head)


def random_vectors(shape: tuple[int, ...], generator: torch.Generator, std: float = 0.02) -> Tensor:
    """Draw the published random start N(0, 0.02) on the CPU, so that every device starts from the same bytes.

    Args:
        shape: `(M, D)` or `(C, M, D)`.
        generator: a CPU generator.
        std: the standard deviation; 0.02 in Zhou et al. 2022, section 4.1.
    """
    return torch.empty(shape).normal_(0.0, std, generator=generator)


def rms(values: Tensor) -> Tensor:
    """Compute the root mean square of all numbers."""
    return values.square().mean().sqrt()
