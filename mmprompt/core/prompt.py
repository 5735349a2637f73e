"""A prompt: sources bound to sites, and for a classifier the words around the class name.

It knows no backbone and no loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmprompt.core.template import TextLayout
from mmprompt.errors import UserError
from mmprompt.models.sites import Site, Tower, Vectors


class SiteSources(nn.Module):
    """Learned vectors at named sites of a frozen model; the only thing with `requires_grad`.

    Args:
        sources: the source of the vectors of each site.
    """

    def __init__(self, sources: Mapping[Site, nn.Module]) -> None:
        super().__init__()
        self.sites = tuple(sorted(sources))
        self.sources = nn.ModuleList(sources[site] for site in self.sites)

    def vectors(self, tower: Tower | None = None) -> dict[Site, Vectors]:
        """The vectors of all sites, or of one tower's."""
        pairs = zip(self.sites, self.sources, strict=True)
        return {site: source() for site, source in pairs if tower in (None, site.tower)}

    def has(self, tower: Tower) -> bool:
        """Whether vectors enter this tower; where none do, its features never change."""
        return any(site.tower == tower for site in self.sites)

    def tensors(self) -> dict[str, Tensor]:
        """The vectors by the name of their site, as the prompt file holds them."""
        return {str(site): vectors.values.detach() for site, vectors in self.vectors().items()}


class Prompt(SiteSources):
    """The prompt of a classifier: learned vectors, and what stands around the class name.

    Args:
        layout: what stands around the class name in the text tower.
        sources: the source of the vectors of each site.
    """

    def __init__(self, layout: TextLayout, sources: Mapping[Site, nn.Module]) -> None:
        super().__init__(sources)
        self.layout = layout

    @property
    def is_class_specific(self) -> bool:
        """Whether some vectors belong to single classes, so that other class names cannot be used."""
        return any(vectors.scope == "class" for vectors in self.vectors().values())

    def join(self, other: Prompt) -> Prompt:
        """One prompt that holds the sources of both.

        Raises:
            UserError: both hold vectors for the same site.
        """
        shared = set(self.sites) & set(other.sites)
        if shared:
            names = ", ".join(str(site) for site in sorted(shared))
            raise UserError(
                f"two methods both learn vectors at {names}. Combine methods that learn at different sites."
            )
        layout = other.layout if other.has("text") else self.layout
        mine = dict(zip(self.sites, self.sources, strict=True))
        return Prompt(layout, mine | dict(zip(other.sites, other.sources, strict=True)))
