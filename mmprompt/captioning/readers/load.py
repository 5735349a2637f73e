"""Names of captioners, and what `load_captioner` makes of them.

    tiny                          the embedded default: the image tower of `tiny` and a small language model
    ENCODER + hf:LM               an encoder that `load_backbone` knows, and a causal language model by name or folder;
                                  the mapper between them is yet to be trained
    hf:NAME                       transformers' BLIP, GIT, BLIP-2, VisionEncoderDecoder, or an image-text-to-text model
    open_clip:coca_ARCH/TAG       open_clip's CoCa, in any of the forms of `load_backbone`
    FOLDER                        a trained mapper, or a model folder of either library

Loading itself is the libraries' own, what can go wrong there is worded as for `load_backbone`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.readers.mapper import (
    SETTINGS_FILE,
    MapperParts,
    MapperSettings,
    new_mapper,
    read_mapper,
    save_mapper,
)
from mmprompt.errors import UserError, bad_file
from mmprompt.models.decoder.load import load_parts
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder, LoadOptions, freeze
from mmprompt.models.dual_encoder.load import (
    TINY,
    Source,
    find_source,
    load_backbone,
    nearest,
    one_line_errors,
    read_options,
)
from mmprompt.models.fingerprint import fingerprint

TINY_CAPTIONER = TINY / "captioner"
FORMS = "Use tiny, 'ENCODER + hf:LM', hf:NAME, open_clip:coca_ARCHITECTURE/TAG or a folder."
READERS = {
    "blip": "cross_attention.load_blip",
    "blip-2": "blip2.load_blip2",
    "git": "git.load_git",
    "instructblip": "blip2.load_blip2",  # which says why not
    "vision-encoder-decoder": "cross_attention.load_encoder_decoder",
}
"""By transformers' model type: file and function, each (name, source, options) -> FrozenCaptioner."""
OTHER_READER = "image_text.load_image_text"


def load_captioner(
    name: str = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> FrozenCaptioner:
    """Load a frozen captioner: evaluation mode, no weight with a gradient.

    Args:
        name: one of the forms at the top of this file.
        device: `"auto"` takes cuda, then mps, then cpu; else a torch device.
        dtype: `"auto"` is float32; `"float64"` everywhere but on mps; `"bfloat16"`, `"float16"` on accelerators.
        cache_dir: where downloads are kept, instead of the libraries' own folders.
        trust_remote_code: whether code that a model brings along may run.
    Raises:
        UserError: no such name, weights that are not there, or a model with parts that are not known.
    """
    options = read_options(device, dtype, cache_dir, trust_remote_code)
    if name == "tiny":
        return load_mapped(name, TINY_CAPTIONER, options)
    folder = Path(name).expanduser()
    if (folder / SETTINGS_FILE).is_file():
        return load_mapped(name, folder, options)
    if "+" in name and not folder.exists():
        return load_pair(name, options)
    return load_whole(name, find_captioner(name), options)


def find_captioner(name: str) -> Source:
    """Read the name of a captioner that is one model.

    Raises:
        UserError: it has none of the known forms, or names a file, folder or tag that is not there.
    """
    if name.startswith(("hf:", "open_clip:")) or Path(name).expanduser().exists():
        return find_source(name)
    raise UserError(f"there is no captioner or folder {name!r}. {nearest(name, list_captioners())} {FORMS}")


def list_captioners() -> list[str]:
    """The names that can be loaded without a path: `tiny` and open_clip's published CoCa models."""
    import open_clip

    names = [f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained() if model.startswith("coca_")]
    return ["tiny", *names]


def load_whole(name: str, source: Source, options: LoadOptions) -> FrozenCaptioner:
    """A captioner that is one model of a library.

    Raises:
        UserError: it has no text decoder, or none that is known.
    """
    with one_line_errors(name, source, options.cache_dir):
        if source.library == "open_clip":
            from mmprompt.captioning.readers.coca import load_coca

            return load_coca(name, source.model, source.weights, options)
        file, function = find_reader(name, source.model, options).split(".")
        return getattr(import_module(f"mmprompt.captioning.readers.{file}"), function)(name, source.model, options)


def find_reader(name: str, model: str, options: LoadOptions) -> str:
    """Which reader takes a transformers model, by its configuration.

    Raises:
        UserError: it is no captioner.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    from mmprompt.models.dual_encoder.transformers_clip import hub_options

    config = AutoConfig.from_pretrained(model, **hub_options(options))
    kind = config.model_type
    if kind in READERS:
        return READERS[kind]
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return OTHER_READER
    advice = f"Use 'tiny + {name}'." if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else f"Use '{name} + hf:gpt2'."
    advice = advice if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in ("clip", "siglip") else FORMS
    raise UserError(f"{name} is a {kind!r} model, but one that writes captions of images was expected. {advice}")


def split_pair(name: str) -> tuple[str, str]:
    """The names of encoder and language model in `ENCODER + hf:LM`.

    Raises:
        UserError: there are not two, or the second is no name of transformers.
    """
    encoder, _, lm = (part.strip() for part in name.partition("+"))
    if not encoder or not lm.startswith("hf:") or "+" in lm:
        raise UserError(
            f"{name!r} does not name one encoder and one language model, but 'ENCODER + hf:LM' was expected. "
            "Use a name such as 'open_clip:ViT-B-32/openai + hf:gpt2'."
        )
    return encoder, lm


def load_pair(name: str, options: LoadOptions, kind: str = "transformer", n_prefix: int | None = 10) -> FrozenCaptioner:
    """An encoder and a language model with an untrained mapper, which is no part of the fingerprint.

    Args:
        name: `ENCODER + hf:LM`.
        options: device, dtype, cache folder, and whether remote code may run.
        kind: of the mapper, as in `MapperSettings`.
        n_prefix: vectors that an image becomes; None for a linear mapper.
    Raises:
        UserError: one of them is not there, or is of another kind.
    """
    encoder_name, lm_name = split_pair(name)
    encoder = load_encoder(encoder_name, options)
    lm, tokenizer = load_causal(lm_name, options)
    width = lm.get_input_embeddings().weight.shape[1]
    reads_tokens = kind == "linear"
    image_width = encode_with(encoder, reads_tokens)(blank(encoder)).shape[-1]
    mapper = new_mapper(MapperSettings(kind, image_width, width, n_prefix))
    return join(name, encoder, mapper, (lm, tokenizer), options, is_trained=False)


def load_mapped(name: str, folder: Path, options: LoadOptions) -> FrozenCaptioner:
    """A saved mapper between the encoder and the language model that it names.

    Raises:
        UserError: a file is missing or damaged, or one of the models is not there or not the same any more.
    """
    mapper, parts = read_mapper(folder)
    encoder = load_encoder(parts.encoder or "tiny", options)
    lm, tokenizer = load_causal(f"hf:{folder}" if parts.lm is None else parts.lm, options)
    captioner = join(name, encoder, mapper, (lm, tokenizer), options)
    is_comparable = parts.frozen is not None and parts.dtype == name_of(options.dtype)
    if is_comparable and parts.frozen != fingerprint(frozen_models(encoder, lm)):
        raise bad_file(
            folder / SETTINGS_FILE,
            f"the mapper was trained between {parts.encoder} and {parts.lm} with other weights",
            "Load the weights of that time, or train the mapper again.",
        )
    return captioner


def save_mapped(captioner: FrozenCaptioner, folder: Path) -> None:
    """Write the mapper of `load_pair`, after its training, as a new folder that `load_captioner` takes.

    Raises:
        UserError: the folder is there already, or cannot be written.
    """
    encoder, lm = split_pair(captioner.name)
    decoder: Any = captioner.decoder
    save_mapper(folder, decoder.mapper, MapperParts(encoder, lm, captioner.fingerprint, name_of(captioner.dtype)))


def join(
    name: str,
    encoder: FrozenDualEncoder,
    mapper: nn.Module,
    language_model: tuple[Any, Any],
    options: LoadOptions,
    is_trained: bool = True,
) -> FrozenCaptioner:
    """A captioner of an encoder, a mapper and a language model with its tokenizer.

    Raises:
        UserError: the mapper does not fit between them.
    """
    from mmprompt.captioning.readers.causal_lm import PrefixDecoder, end_of, start_of
    from mmprompt.captioning.readers.pretrained import caption_tokenizer

    lm, tokenizer = language_model
    freeze(mapper, options)
    settings: Any = mapper.settings
    encode = encode_with(encoder, settings.reads_tokens)
    n_tokens, image_width = encode(blank(encoder)).shape[1:]
    width = lm.get_input_embeddings().weight.shape[1]
    if (image_width, width) != (settings.image_width, settings.width):
        raise UserError(
            f"the mapper of {name} takes image features of {settings.image_width} numbers to embeddings of "
            f"{settings.width}, but these models have {image_width} and {width}. Train a mapper for them."
        )
    models = frozen_models(encoder, lm)
    if is_trained:
        models["mapper"] = mapper
    start_id, end_id = start_of(name, lm, tokenizer), end_of(name, lm, tokenizer)
    decoder = PrefixDecoder(lm, mapper, start_id, end_id, settings.n_prefix or n_tokens, is_trained)
    captioner = FrozenCaptioner(name, models, encode, decoder, caption_tokenizer(tokenizer), encoder.pixels)
    captioner.encoder_fingerprint = encoder.fingerprint
    return captioner


def frozen_models(encoder: FrozenDualEncoder, lm: Any) -> nn.ModuleDict:
    """What stays as it is while a mapper is trained."""
    return nn.ModuleDict({"encoder": encoder.model, "lm": lm})


def name_of(dtype: torch.dtype) -> str:
    """What the user calls a dtype."""
    return str(dtype).removeprefix("torch.")


def load_encoder(name: str, options: LoadOptions) -> FrozenDualEncoder:
    """A dual encoder by name."""
    dtype = name_of(options.dtype)
    encoder = load_backbone(name, str(options.device), dtype, options.cache_dir, options.trust_remote_code)
    assert isinstance(encoder, FrozenDualEncoder), "load_backbone makes no other"
    return encoder


def load_causal(name: str, options: LoadOptions) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, by `hf:NAME` or `hf:FOLDER`.

    Raises:
        UserError: it is not there, or it is another kind of model.
    """
    lm, tokenizer = load_parts(name, options)
    if lm.config.is_encoder_decoder:
        raise UserError(
            f"{name} is a {lm.config.model_type!r} model, but a causal language model was expected. "
            "Use a model such as hf:gpt2."
        )
    return lm, tokenizer


def encode_with(encoder: FrozenDualEncoder, reads_tokens: bool) -> Any:
    """The image features that a mapper takes: [B, 3, H, W] to all tokens [B, T, D'], or to the pooled [B, 1, E]."""
    if reads_tokens:
        return encoder.encode_image_tokens

    def pooled(images: Tensor) -> Tensor:
        return encoder.encode_image(images)[:, None]

    return pooled


def blank(encoder: FrozenDualEncoder) -> Tensor:
    """One image of zeros, to see the shape of features."""
    return torch.zeros(1, 3, encoder.image_size, encoder.image_size)
