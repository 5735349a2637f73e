"""The dual encoder: open_clip's own `CLIP` class from a small configuration, and the two forwards used in training."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from openart.tokenizer import CONTEXT_LENGTH

MEAN, STD = (0.7, 0.7, 0.7), (0.3, 0.3, 0.3)


def configuration(vocab_size: int, image_size: int, patch_size: int, width: int) -> dict[str, Any]:
    """open_clip's model configuration."""
    return {
        "embed_dim": 192,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": patch_size,
            "width": width,
            "layers": 6,
            "head_width": 64,
        },
        "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": vocab_size, "width": 192, "heads": 3, "layers": 3},
    }


def build(config: dict[str, Any], seed: int) -> CLIP:
    """A freshly initialised model."""
    torch.manual_seed(seed)
    model = CLIP(config["embed_dim"], dict(config["vision_cfg"]), dict(config["text_cfg"]))
    nn.init.trunc_normal_(model.visual.conv1.weight, std=0.02)
    with torch.no_grad():
        side = config["vision_cfg"]["image_size"] // config["vision_cfg"]["patch_size"]
        model.visual.positional_embedding[1:] += 0.4 * plane_waves(side, config["vision_cfg"]["width"])
    return model


def plane_waves(side: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates of a patch grid: [side * side, width], row by row, entries within 1.

    Position must weigh about as much as content from the start. With open_clip's small random position embeddings the
    tower never learnt to tell left from right (LOG.md, 2026-11-24).
    """
    place = torch.arange(side, dtype=torch.float32)
    waves = math.pi / (2 * side) * (2.0 * side) ** torch.linspace(0, 1, width // 4)
    angle = place[:, None] * waves
    along = torch.cat([angle.sin(), angle.cos()], 1)  # [side, width / 2]
    down = along[:, None].expand(side, side, -1)
    across = along[None].expand(side, side, -1)
    return torch.cat([across, down], 2).flatten(0, 1)


def image_class_token(model: CLIP, images: Tensor, keep: Tensor | None) -> Tensor:
    """The class token before the projection, [B, 3, S, S] in 0..1 -> [B, D]; of patches `keep` [B, k], or of all."""
    tower = model.visual
    images = (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]
    x = tower.conv1(images).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]  # [B, P, D]
    if keep is not None:
        x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
    x = tower.transformer(tower.ln_pre(torch.cat([first, x], 1)))
    return tower.ln_post(x[:, 0])


def image_features(model: CLIP, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Unit-norm features [B, E] and the class token [B, D]."""
    token = image_class_token(model, images, keep)
    return F.normalize(token @ model.visual.proj, dim=-1), token


def text_features(model: CLIP, ids: list[list[int]], chunks: int = 3) -> Tensor:
    """Unit-norm features [N, E] of unpadded token ids, encoded in chunks of like length, each at its longest."""
    device = model.text_projection.device
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    size = math.ceil(len(ids) / chunks)
    found = []
    for start in range(0, len(ids), size):
        some = [ids[i] for i in order[start : start + size]]
        length = max(len(t) for t in some)
        padded = torch.tensor([t + t[-1:] * (length - len(t)) for t in some], device=device)
        ends = torch.tensor([len(t) - 1 for t in some], device=device)
        x = model.token_embedding(padded) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        found.append(x[torch.arange(len(some), device=device), ends] @ model.text_projection)
    back = torch.tensor(order, device=device).argsort()
    return F.normalize(torch.cat(found), dim=-1)[back]


class Heads(nn.Module):
    """Throw-away linear classifiers on the class token, which help the image tower to get going."""

    def __init__(self, width: int, n_concepts: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({name: nn.Linear(width, n_concepts) for name in names})
        if "place" in self.linear:
            nn.init.normal_(self.linear["place"].weight, std=0.01)
            nn.init.constant_(self.linear["place"].bias, 0.5)  # the middle of the canvas

    def forward(self, name: str, token: Tensor) -> Tensor:
        """Logits [B, n_concepts] of one head."""
        return self.linear[name](token)

    @torch.no_grad()
    def start_from(self, name: str) -> None:
        """Set every relation's head to the weights of one: it need not learn the concepts again."""
        for other in (self.linear[n] for n in self.linear if n != "place"):
            other.load_state_dict(self.linear[name].state_dict())
