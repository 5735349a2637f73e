"""What the rest of the package asks of a frozen dual encoder, or of an image tower alone.

Any object with these attributes is a backbone; nothing above this floor knows which library it came from. Features are
unit norm, `logit_scale` is linear (about 100 for CLIP). An image tower alone has no joint space: its features are as it
gives them, and whatever reads text is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from mmprompt.errors import UserError
from mmprompt.models.sites import Insert, Site, TextSlots, Tower


@runtime_checkable
class DualEncoder(Protocol):
    """A frozen image tower and a frozen text tower with one joint space of width E.

    Attributes:
        name: what `load_backbone` takes to get this backbone again.
        fingerprint: hex SHA-256 over the names, shapes, dtypes and bytes of all weights.
        architecture: the same over what decides beside them what is computed, such as the number of heads.
        device, dtype: where the towers live and compute.
        has_text: whether there is a text tower; without one its widths and numbers are 0.
        embed_dim: E.  raw_width: W of image features before the projection, 0 where they are not told apart.
        text_width: D of the text tower.  vision_width: D of the image tower, None without image tokens.
        text_layers, vision_layers: number of blocks (0 for an image tower without image tokens).
        norm_sites: the layer norms of both towers that can be moved.
        unprompted_part: the class of the image tower, or of a part of it, that no prompt can join; None if all can.
        context_length: text slots, start and end included.  vocabulary_size: V, the token ids there are.
        logit_scale: linear multiplier of the cosine, 100 without a text tower.
        logit_bias: added to the logits (SigLIP), else 0.
        image_size: side of the square input in pixels.  transform: what `preprocess` does, in one line of text.
    """

    name: str
    fingerprint: str
    architecture: str
    device: torch.device
    dtype: torch.dtype
    has_text: bool
    embed_dim: int
    text_width: int
    text_layers: int
    vision_width: int | None
    vision_layers: int
    unprompted_part: str | None
    context_length: int
    vocabulary_size: int
    logit_scale: float
    logit_bias: float
    image_size: int
    transform: str

    @property
    def norm_sites(self) -> tuple[Site, ...]:
        """See the class."""
        ...

    @property
    def raw_width(self) -> int:
        """See the class."""
        ...

    def weights_of(self, tower: Tower) -> Mapping[str, Tensor]:
        """List the weights of a tower by name; scale and bias of the logits belong to neither."""
        ...

    def find_patch_size(self) -> int | None:
        """Return the side of a patch in pixels, None without image tokens."""
        ...

    def preprocess(self, image: Image.Image) -> Tensor:
        """Apply the backbone's own test transform to one RGB image: [3, H, W] float32."""
        ...

    def normalize(self, images: Tensor) -> Tensor:
        """Turn pixels [B, 3, H, W] in 0..1 at the backbone's size into its normalised input."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without start, end or padding."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text that token ids stand for, as people read it."""
        ...

    def text_slots(self, rows: Sequence[Sequence[int]]) -> TextSlots:
        """Frame rows of slots with the tower's own start, end and padding.

        Args:
            rows: per class, token ids (>= 0), and -1 - m where context vector m stands.
        """
        ...

    def token_vectors(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings [..., D] of token ids [...], before positions are added."""
        ...

    def encode_text(
        self, slots: TextSlots, inserts: Mapping[Site, Insert] | None = None, normalise: bool = True
    ) -> Tensor:
        """Return class features [C, E] or [B, C, E], with what is learned at the text sites put in.

        Args:
            slots: what stands where, from `text_slots`.
            inserts: by site; those of vision sites are left alone. If some vectors are of scope `"sample"`
                [B, M, D], the features are [B, C, E].
            normalise: give features unit norm, which the cosine needs; some methods average them before.
        Raises:
            UserError: the vectors do not fit this tower or these classes.
        """
        ...

    def encode_image(self, images: Tensor, inserts: Mapping[Site, Insert] | None = None, raw: bool = False) -> Tensor:
        """Return image features [B, E], with what is learned at the vision sites put in.

        They are of unit norm where there is a text tower to compare them with, else as the image tower gives them.

        Args:
            images: [B, 3, H, W], normalised, of the backbone's size.
            inserts: by site; those of text sites are left alone.
            raw: return [B, E + W]: those before the projection stand after the features, of unit norm too; W is 0 where
                something is learned in the tower.
        Raises:
            UserError: the images have another size, or what is put in does not fit this tower.
        """
        ...

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the weights as they are now, to compare with `fingerprint`."""
        ...


def without_text(name: str) -> UserError:
    """Word the refusal of what reads text on an image tower alone, by its name."""
    return UserError(
        f"{name} has no text tower, but this needs one. Use vpt, padding-prompt or linear-probe, which then learn a "
        "classifier of their own, or a dual encoder such as open_clip:ViT-B-16/openai."
    )
