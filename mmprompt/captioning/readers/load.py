"""Names of captioners, and what `load_captioner` makes of them.

    tiny                          the embedded default, for drawn scenes: `tiny`'s image tower, a small language model
    photo                         for photographs: `photo`'s image tower, fetched once, a small language model
    ENCODER + LM                  an encoder that `load_backbone` knows, and a causal language model that
                                  `load_language_model` knows; the mapper between them is yet to be trained
    hf:NAME                       transformers' BLIP, GIT, BLIP-2, VisionEncoderDecoder, or an image-text-to-text model
    open_clip:coca_ARCH/TAG       open_clip's CoCa, in any of the forms of `load_backbone`
    FOLDER                        a trained mapper, or a model folder of either library

Loading itself is the libraries' own, what can go wrong there is worded as for `load_backbone`. A mapper goes from image
features to a language model's embeddings; its folder holds `mapper.json`, which names the frozen encoder and language
model, and `mapper.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.captioning.readers.captioner import (
    FrozenCaptioner,
    KnownImages,
    PrefixDecoder,
    caption_tokenizer,
    first_id,
)
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import read_json, read_tensors
from mmprompt.models.decoder.load import load_parts
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.load import (
    ASSETS,
    Source,
    find_source,
    load_backbone,
    nearest,
    one_line_errors,
    read_options,
)
from mmprompt.models.frozen import LoadOptions, fingerprint, freeze
from mmprompt.settings import Count, check_settings, checked, expanded

SETTINGS_FILE, WEIGHTS_FILE = "mapper.json", "mapper.safetensors"
KNOWN_IMAGES_FILE = "drawn_scenes.safetensors"
"""Of `tiny`, beside its encoder; made by scripts/pretrain_tiny_captioner.py."""
N_LAYERS, N_HEADS, N_PREFIX, N_CONCEPTS = 8, 8, 10, 512
FORMS = "Use tiny, photo, 'ENCODER + LM', hf:NAME, open_clip:coca_ARCHITECTURE/TAG or a folder."
SHIPPED = {name: ASSETS / name / "captioner" for name in ("tiny", "photo")}
"""The captioners whose decoder is in the package, and its folder."""
READERS = {
    "blip": "transformers_captioners.load_blip",
    "blip-2": "transformers_captioners.load_blip2",
    "git": "transformers_captioners.load_git",
    "instructblip": "transformers_captioners.load_blip2",  # which says why not
    "vision-encoder-decoder": "transformers_captioners.load_encoder_decoder",
}
"""By transformers' model type: file and function. Each takes what the captioner calls itself, a folder or a name on the
hub, and the options, and raises UserError for a model with missing weights or with parts that are not known."""


@checked
def load_captioner(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    mapper: str | None = None,
    n_prefix: Count | None = None,
) -> FrozenCaptioner:
    """Load a frozen captioner: evaluation mode, no weight with a gradient.

    Args:
        name: one of the forms at the top of this file.
        device: `"auto"` takes cuda, then mps, then cpu; else a torch device.
        dtype: `"auto"` is float32; `"float64"` everywhere but on mps; `"bfloat16"`, `"float16"` on accelerators.
        cache_dir: where downloads are kept, instead of the libraries' own folders.
        trust_remote_code: whether code that a model brings along may run.
        mapper: kind of the untrained mapper of `ENCODER + LM`: "mlp", the default, "concepts", "transformer", "linear".
        n_prefix: vectors that the mapper makes of an image, by default 10; "linear" makes one of every image token.
    Raises:
        UserError: no such name, weights that are not there, or a model with parts that are not known.
    """
    name, options = str(name), read_options(device, dtype, cache_dir, trust_remote_code)
    folder = SHIPPED.get(name) or expanded(name)
    is_mapped = (folder / SETTINGS_FILE).is_file()
    if not is_mapped and "+" in name and not folder.exists():
        return load_pair(name, options, mapper or "mlp", n_prefix)
    for option, value in (("mapper", mapper), ("n_prefix", n_prefix)):
        if value is not None:
            raise bad_value(option, value, f"it is for 'ENCODER + LM', not for {name}", "Leave it out.")
    if is_mapped:
        return _load_mapped(name, folder, options)
    source = find_captioner(name)
    with one_line_errors(name, source, options.cache_dir):
        if source.library == "open_clip":
            from mmprompt.captioning.readers.coca import load_coca

            return load_coca(name, source.model, source.weights, options)
        file, function = _find_reader(name, source.model, options).split(".")
        return getattr(import_module(f"mmprompt.captioning.readers.{file}"), function)(name, source.model, options)


def find_captioner(name: str) -> Source:
    """Read the name of a captioner that is one model, which is there."""
    if name.startswith(("hf:", "open_clip:")) or expanded(name).exists():
        return find_source(name)
    raise UserError(f"there is no captioner or folder {name!r}. {nearest(name, list_captioners())} {FORMS}")


def list_captioners() -> list[str]:
    """List the names that can be loaded without a path: `tiny`, `photo` and open_clip's published CoCa models."""
    import open_clip

    names = [f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained() if model.startswith("coca_")]
    return [*SHIPPED, *names]


def _find_reader(name: str, model: str, options: LoadOptions) -> str:
    """Name the reader that takes a transformers model, by its configuration."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    from mmprompt.models.frozen import hub_options

    config = AutoConfig.from_pretrained(model, **hub_options(options))
    kind = config.model_type
    if kind in READERS:
        return READERS[kind]
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "image_text.load_image_text"
    advice = f"Use '{name} + hf:gpt2'." if kind in ("clip", "siglip") else FORMS
    advice = f"Use 'tiny + {name}'." if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else advice
    raise UserError(f"{name} is a {kind!r} model, but one that writes captions of images was expected. {advice}")


def split_pair(name: str) -> tuple[str, str]:
    """Read the names of encoder and language model in `ENCODER + LM`."""
    encoder, _, lm = (part.strip() for part in name.partition("+"))
    if not encoder or not lm or "+" in lm:
        raise UserError(
            f"{name!r} does not name one encoder and one language model, but 'ENCODER + LM' was expected. "
            "Use a name such as 'open_clip:ViT-B-32/openai + hf:gpt2'."
        )
    return encoder, lm


def load_pair(name: str, options: LoadOptions, kind: str = "mlp", n_prefix: int | None = None) -> FrozenCaptioner:
    """Load `ENCODER + LM` with an untrained mapper, which is no part of the fingerprint.

    The mapper is of one `kind` and makes `n_prefix` vectors of an image, by default 10, as in `MapperSettings`.
    """
    if kind not in MAPPERS:
        raise unknown_name("kind of mapper", kind, MAPPERS)
    n_prefix = N_PREFIX if n_prefix is None and kind != "linear" else n_prefix
    pair = Pair.load(*split_pair(name), options)
    width = pair.lm.get_input_embeddings().weight.shape[1]
    image_width = pair.image_shape(kind == "linear", bool(pair.encoder.raw_width))[1]
    n_concepts = N_CONCEPTS if kind == "concepts" else None
    mapper = new_mapper(MapperSettings(kind, image_width, width, n_prefix, n_concepts))
    return _join(name, pair, mapper, options, is_trained=False)


def _load_mapped(name: str, folder: Path, options: LoadOptions) -> FrozenCaptioner:
    """Load a saved mapper between the encoder and the language model that it names."""
    mapper, parts = read_mapper(folder)
    pair = Pair.load(parts.encoder or "tiny", f"hf:{folder}" if parts.lm is None else parts.lm, options)
    captioner = _join(name, pair, mapper, options)
    is_comparable = parts.frozen is not None and parts.dtype == dtype_name(options.dtype)
    if is_comparable and parts.frozen != fingerprint(nn.ModuleDict(pair.models)):
        raise bad_file(
            folder / SETTINGS_FILE,
            f"the mapper was trained between {parts.encoder} and {parts.lm} with other weights",
            "Load the weights of that time, or train the mapper again.",
        )
    if name == "tiny":
        captioner.known_images = KnownImages.load(ASSETS / name / KNOWN_IMAGES_FILE)
    return captioner


@dataclass(frozen=True)
class Pair:
    """A frozen image encoder and a frozen causal language model with its tokenizer."""

    encoder: FrozenDualEncoder
    lm: Any
    tokenizer: Any

    @classmethod
    def load(cls, encoder_name: str, lm_name: str, options: LoadOptions) -> Pair:
        """Load both by name."""
        where = str(options.device), dtype_name(options.dtype), options.cache_dir
        encoder: Any = load_backbone(encoder_name, *where, options.trust_remote_code)
        lm, tokenizer = load_parts(lm_name, options)
        if lm.config.is_encoder_decoder:
            raise UserError(
                f"{lm_name} is a {lm.config.model_type!r} model, but a causal language model was expected. "
                "Use a model such as hf:gpt2."
            )
        return cls(encoder, lm, tokenizer)

    @property
    def models(self) -> dict[str, nn.Module]:
        """What stays as it is while a mapper is trained."""
        return {"encoder": self.encoder.model, "lm": self.lm}

    def encode(self, images: Tensor, reads_tokens: bool, is_raw: bool) -> Tensor:
        """Turn [B, 3, H, W] into what a mapper takes: all image tokens [B, T, D'], or one pooled feature [B, 1, D'].

        `is_raw` asks for the image tower's own feature, where it has one, instead of that of the joint space.
        """
        if reads_tokens:
            return self.encoder.encode_image_tokens(images)
        features = self.encoder.encode_image(images, raw=is_raw)
        return (features[:, -self.encoder.raw_width :] if is_raw else features)[:, None]

    def image_shape(self, reads_tokens: bool, is_raw: bool) -> tuple[int, int]:
        """Return T and D' of what `encode` gives."""
        blank = torch.zeros(1, 3, *[self.encoder.image_size] * 2)
        n_tokens, width = self.encode(blank, reads_tokens, is_raw).shape[1:]
        return n_tokens, width


def _join(name: str, pair: Pair, mapper: nn.Module, options: LoadOptions, is_trained: bool = True) -> FrozenCaptioner:
    """Make a captioner of an encoder, a mapper and a language model."""
    freeze(mapper, options)
    settings: Any = mapper.settings
    # By the width of what it reads: a mapper that was trained on features of the joint space goes on with those.
    reads = {"reads_tokens": settings.reads_tokens, "is_raw": settings.image_width == pair.encoder.raw_width}
    n_tokens, image_width = pair.image_shape(**reads)
    width = pair.lm.get_input_embeddings().weight.shape[1]
    if (image_width, width) != (settings.image_width, settings.width):
        raise UserError(
            f"the mapper of {name} takes image features of {settings.image_width} numbers to embeddings of "
            f"{settings.width}, but these models have {image_width} and {width}. Train a mapper for them."
        )
    models = nn.ModuleDict(pair.models | ({"mapper": mapper} if is_trained else {}))
    places = pair.tokenizer, pair.lm.generation_config, pair.lm.config
    starts, ends = ([getattr(place, key, None) for place in places] for key in ("bos_token_id", "eos_token_id"))
    start_id = first_id(name, "start", *starts, *ends)  # the end, where a model has no start of its own
    decoder = PrefixDecoder(pair.lm, mapper, start_id, first_id(name, "end", *ends), settings.n_prefix or n_tokens)
    encode = partial(pair.encode, **reads)
    captioner = FrozenCaptioner(name, models, encode, decoder, caption_tokenizer(pair.tokenizer), pair.encoder.pixels)
    captioner.encoder_fingerprint = pair.encoder.fingerprint
    return captioner


def dtype_name(dtype: torch.dtype) -> str:
    """Return what the user calls a dtype."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class MapperSettings:
    """The shape of a mapper: from image features of one width to a language model's embeddings of another.

    `n_prefix` is the number of vectors that an image becomes; None for `"linear"`, which makes one of every image
    token. `n_concepts` is how many things `"concepts"` tells apart, None for the others.
    """

    kind: str
    image_width: Count
    width: Count
    n_prefix: Count | None = None
    n_concepts: Count | None = None

    def __post_init__(self) -> None:
        if self.kind not in MAPPERS:
            raise unknown_name("kind of mapper", self.kind, MAPPERS)
        check_settings(self)
        if self.kind == "linear" and self.n_prefix is not None:
            expected = "a linear mapper makes a vector of every image token"
            raise bad_value("n_prefix", self.n_prefix, expected, "Leave it out.")
        if self.kind != "linear" and self.n_prefix is None:
            raise bad_value("n_prefix", self.n_prefix, f"a mapper of kind {self.kind} makes at least one", "Use 10.")
        if (self.n_concepts is None) == (self.kind == "concepts"):
            expected = "a mapper of kind concepts has some, and no other has"
            raise bad_value("n_concepts", self.n_concepts, expected, f"Use {N_CONCEPTS} for concepts, else none.")

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


def _concepts(settings: MapperSettings) -> nn.Module:
    """Detect concepts, each silent below a threshold of its own, and add up the vectors of those that are not.

    [N, 1, D'] to [N, M, D]; as in ViECap (Fei et al. 2023), detected things become a prefix, here without words.
    """
    n_concepts, n_out = settings.n_concepts or 1, (settings.n_prefix or 1) * settings.width
    detect, add = nn.Linear(settings.image_width, n_concepts), nn.Linear(n_concepts, n_out)
    return nn.Sequential(nn.Flatten(1), detect, nn.ReLU(), add, nn.Unflatten(1, (-1, settings.width)))


class TransformerMapper(nn.Module):
    """A transformer over the image, spread on M vectors, and M learned constants: [N, 1, D'] to [N, M, D].

    The layers are ClipCap's (Mokady et al. 2021, section 3.3), parameter for parameter; queries, keys and values have
    no bias there. ClipCap may spread the image on another number of vectors than there are constants; here it is M too.
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
    "concepts": _concepts,
    "transformer": TransformerMapper,
}


def new_mapper(settings: MapperSettings, seed: int = 1) -> nn.Module:
    """Make an untrained mapper that knows its `settings`; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapper: Any = MAPPERS[settings.kind](settings)
    mapper.settings = settings
    return mapper


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


def read_mapper(folder: Path) -> tuple[nn.Module, MapperParts]:
    """Read a folder of `save_mapped`; refuse files that are missing or damaged, or do not belong together."""
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
