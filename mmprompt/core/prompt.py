"""A prompt: sources bound to sites, and for a classifier the words around the class name.

It knows no backbone and no loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

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
