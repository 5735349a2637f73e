"""Mappers from image features to a language model's embeddings, and the folder that one is kept in.

`mlp` and `transformer` make a fixed number of vectors of one pooled feature (Mokady et al. 2021, "ClipCap", section
3.3); `linear` makes one vector of every image token. A folder holds `mapper.json`, which names the frozen encoder and
language model, and `mapper.safetensors`. Who trains a mapper is not known here. `PrefixDecoder` is the language model
behind one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import new_folder, read_json, read_tensors, tensor_bytes, write_bytes, write_json
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.settings import Count, check_settings

SETTINGS_FILE, WEIGHTS_FILE = "mapper.json", "mapper.safetensors"
N_LAYERS, N_HEADS = 8, 8


@dataclass(frozen=True)
class MapperSettings:
    """The shape of a mapper.

    Args:
        kind: `"linear"`, `"mlp"` or `"transformer"`.
        image_width: D' of the image features.
        width: D of the language model's embeddings.
        n_prefix: vectors that an image becomes; None for `"linear"`, which makes as many as there are image tokens.
    """

    kind: str
    image_width: Count
    width: Count
    n_prefix: Count | None = None

    def __post_init__(self) -> None:
        if self.kind not in MAPPERS:
            raise unknown_name("kind of mapper", self.kind, MAPPERS)
        check_settings(self)
        if self.kind == "linear" and self.n_prefix is not None:
            expected = "a linear mapper makes a vector of every image token"
            raise bad_value("n_prefix", self.n_prefix, expected, "Leave it out.")
        if self.kind != "linear" and self.n_prefix is None:
            raise bad_value("n_prefix", self.n_prefix, f"a mapper of kind {self.kind} makes at least one", "Use 10.")

    @property
    def reads_tokens(self) -> bool:
        """Whether it takes all image tokens [B, T, D'] instead of the pooled feature [B, 1, D']."""
        return self.kind == "linear"


def _linear(settings: MapperSettings) -> nn.Module:
    """Make a layer norm and a linear map of every image token: [N, T, D'] to [N, T, D]."""
    return nn.Sequential(nn.LayerNorm(settings.image_width), nn.Linear(settings.image_width, settings.width))


def _mlp(settings: MapperSettings) -> nn.Module:
    """Make one hidden layer of half the output's width: [N, 1, D'] to [N, M, D]."""
    n_out = (settings.n_prefix or 1) * settings.width
    hidden = max(1, n_out // 2)
    layers = nn.Flatten(1), nn.Linear(settings.image_width, hidden), nn.Tanh(), nn.Linear(hidden, n_out)
    return nn.Sequential(*layers, nn.Unflatten(1, (-1, settings.width)))


class TransformerMapper(nn.Module):
    """A transformer over the image, spread on M vectors, and M learned constants: [N, 1, D'] to [N, M, D].

    The layers are ClipCap's, parameter for parameter; queries, keys and values have no bias there. ClipCap may spread
    the image on another number of vectors (clip_length) than there are constants (prefix_length); here it is M too.
    """

    def __init__(self, settings: MapperSettings) -> None:
        super().__init__()
        width, n_prefix = settings.width, settings.n_prefix or 1
        self.spread = nn.Linear(settings.image_width, n_prefix * width)
        self.constants = nn.Parameter(torch.randn(n_prefix, width))
        layers = [
            nn.TransformerEncoderLayer(
                width, math.gcd(N_HEADS, width), 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(N_LAYERS)
        ]
        for layer in layers:
            layer.self_attn.register_parameter("in_proj_bias", None)
        self.encoder = nn.TransformerEncoder(layers[0], N_LAYERS, enable_nested_tensor=False)
        self.encoder.layers = nn.ModuleList(layers)  # torch copies one layer, so that all would start alike

    def forward(self, features: Tensor) -> Tensor:
        """[N, 1, D'] to [N, M, D]: what stands in the slots of the constants."""
        image = self.spread(features).unflatten(-1, self.constants.shape).flatten(1, 2)  # [N, M, D]
        x = torch.cat([image, self.constants.expand(len(image), -1, -1)], dim=1)
        return self.encoder(x)[:, image.shape[1] :]


MAPPERS: dict[str, Callable[[MapperSettings], nn.Module]] = {
    "linear": _linear,
    "mlp": _mlp,
    "transformer": TransformerMapper,
}


def new_mapper(settings: MapperSettings, seed: int = 1) -> nn.Module:
    """Make an untrained mapper that knows its `settings`; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapper: Any = MAPPERS[settings.kind](settings)
    mapper.settings = settings
    return mapper


class PrefixDecoder(CausalReader):
    """transformers' causal language model behind a mapper from image features to its embeddings.

    It reads image vectors as a prefix (Mokady et al. 2021, "ClipCap"; Liu et al. 2023, "Visual Instruction Tuning"),
    then the start token, a prompt and the caption.

    Args:
        lm: any `...ForCausalLM` that keeps keys and values.
        mapper: [N, T, D'] to [N, T', D].
        start_id, end_id: the tokens around a caption.
        n_image: T', the slots of an image.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(self, lm: Any, mapper: nn.Module, start_id: int, end_id: int, n_image: int) -> None:
        super().__init__(lm)
        self.mapper = mapper
        self.start_ids: tuple[int, ...] = (start_id,)
        self.end_id = end_id
        self.budget = self.n_positions - n_image - 1

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the image prefix."""
        return self.run(KVCache(), self.mapper(features))[1]


@dataclass(frozen=True)
class MapperParts:
    """The frozen models on both sides of a saved mapper: the encoder by `load_backbone`'s name, the model by `hf:NAME`.

    None is what the folder's reader knows: the tiny encoder, or the mapper's own folder. `frozen` is the fingerprint of
    both, None where it was not kept, and `dtype` that in which it was taken, for the same weights have another in each.
    """

    encoder: str | None = None
    lm: str | None = None
    frozen: str | None = None
    dtype: str | None = None


def save_mapper(folder: Path, mapper: nn.Module, parts: MapperParts) -> None:
    """Write a trained mapper as a new folder that `load_captioner` takes."""
    if folder.exists():
        raise bad_file(folder, "is there already", "Give a new folder.")
    settings: Any = mapper.settings
    with new_folder(folder) as place:
        write_json(place / SETTINGS_FILE, asdict(settings) | asdict(parts))
        write_bytes(place / WEIGHTS_FILE, tensor_bytes(mapper.state_dict(), {"format": "pt"}))


def read_mapper(folder: Path) -> tuple[nn.Module, MapperParts]:
    """Read a folder of `save_mapper`; refuse files that are missing or damaged, or do not belong together."""
    path, restore = folder / SETTINGS_FILE, "Restore the file as it was written."
    content = read_json(path)
    names = [field.name for kind in (MapperSettings, MapperParts) for field in fields(kind)]
    if not isinstance(content, dict):
        raise bad_file(path, "is not a JSON object", restore)
    for name in content:
        if name not in names:
            raise bad_file(path, str(unknown_name("entry", name, names)), restore)
    parts = MapperParts(**{field.name: content.pop(field.name, None) for field in fields(MapperParts)})
    if not all(value is None or isinstance(value, str) for value in asdict(parts).values()):
        raise bad_file(path, "names an encoder or a language model by something that is no text", "Restore the file.")
    try:
        mapper = new_mapper(MapperSettings(**content))
    except (UserError, TypeError) as error:
        raise bad_file(path, f"does not describe a mapper ({error})", restore) from None
    try:
        mapper.load_state_dict(read_tensors(folder / WEIGHTS_FILE))
    except RuntimeError:
        problem = f"does not hold the weights that {SETTINGS_FILE} describes"
        raise bad_file(folder / WEIGHTS_FILE, problem, "Restore both files.") from None
    return mapper, parts
