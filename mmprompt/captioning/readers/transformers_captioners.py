"""Reads transformers' captioners: BLIP, VisionEncoderDecoder, GIT and BLIP-2.

Their own forwards and `generate` take no vectors among the tokens, so each decoder is run by its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    GitForCausalLM,
    VisionEncoderDecoderModel,
)

from mmprompt.captioning.readers.captioner import (
    FrozenCaptioner,
    PrefixDecoder,
    TextDecoder,
    caption_tokenizer,
    first_id,
)
from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import (
    KVCache,
    cache_argument,
    causal_mask,
    from_cache,
    to_cache,
    to_crossed_cache,
)
from mmprompt.models.dual_encoder.transformers_clip import read_pixels
from mmprompt.models.frozen import LoadOptions, freeze, hub_options, load_complete

T5_LENGTH = 512
"""Tokens of T5's training texts. Its positions are relative, so that there is no other limit."""


def load_frozen(model_class: Any, source: str, options: LoadOptions, unread: str | None = None) -> Any:
    """Load a frozen model of one class, or of an auto class; the arguments are those of `load_complete`."""
    model = load_complete(model_class, source, options, unread)
    freeze(model, options)
    return model


def build_captioner(
    name: str,
    source: str,
    options: LoadOptions,
    model: Any,
    encode: Callable[[Tensor], Tensor],
    decoder: TextDecoder,
    size: int,
) -> FrozenCaptioner:
    """Make a captioner of a model's parts with its own tokenizer and its own test transform to `size` pixels."""
    tokenizer = caption_tokenizer(AutoTokenizer.from_pretrained(source, **hub_options(options)))
    pixels = read_pixels(AutoImageProcessor.from_pretrained(source, **hub_options(options)), size)
    return FrozenCaptioner(name, model, encode, decoder, tokenizer, pixels)


def run_crossed(body: Any, kv_cache: KVCache, x: Tensor, **given: Any) -> tuple[Tensor, KVCache]:
    """Run a decoder with cross-attention over further slots; it computes keys and values of the states if need be."""
    cache = to_crossed_cache(kv_cache.own, kv_cache.crossed)
    given |= cache_argument(body, cache)
    out = body(inputs_embeds=x, encoder_hidden_states=kv_cache.states, use_cache=True, **given)
    own, crossed = from_cache(cache.self_attention_cache), from_cache(cache.cross_attention_cache)
    return out.last_hidden_state, KVCache(own, kv_cache.states, crossed, kv_cache.n_read + x.shape[1])


def load_blip(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `BlipForConditionalGeneration`; a prompt stands after its start token [DEC].

    Its start is BLIP's `bos`, its end BERT's `sep`, as in the library's `generate`.
    """
    model = load_frozen(BlipForConditionalGeneration, source, options)
    text, config = model.text_decoder, model.config.text_config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    ends = config.bos_token_id, config.sep_token_id
    decoder = _CrossDecoder(text, text.bert, text.cls, config.max_position_embeddings, shape, ends, is_decoder=True)

    def encode(images: Tensor) -> Tensor:
        return model.vision_model(pixel_values=images).last_hidden_state

    return build_captioner(name, source, options, model, encode, decoder, model.config.vision_config.image_size)


def load_encoder_decoder(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `VisionEncoderDecoderModel` with GPT-2; a prompt stands after the decoder's start token."""
    model = load_frozen(VisionEncoderDecoderModel, source, options, unread="encoder.pooler.")
    if hasattr(model.encoder, "pooler"):
        model.encoder.pooler = None  # captions read no pooled feature, and many checkpoints lack its weights
    config, generation, size = model.config.decoder, model.generation_config, model.config.encoder.image_size
    if config.model_type != "gpt2":
        raise UserError(
            f"the decoder of {name} is a {config.model_type!r} model, but 'gpt2' was expected. "
            "Use a model such as hf:nlpconnect/vit-gpt2-image-captioning."
        )
    starts = [getattr(place, "decoder_start_token_id", None) for place in (generation, model.config)]
    start_id = first_id(name, "start", *starts)
    ends = start_id, first_id(name, "end", generation.eos_token_id, config.eos_token_id)
    shape = (config.n_layer, config.n_head, config.n_embd // config.n_head)
    decoder = _CrossDecoder(
        model.decoder, model.decoder.transformer, model.decoder.lm_head, config.n_positions, shape, ends
    )
    is_projected = model.encoder.config.hidden_size != config.hidden_size
    if is_projected and getattr(config, "cross_attention_hidden_size", None) is None:
        decoder.project = model.enc_to_dec_proj

    def encode(images: Tensor) -> Tensor:
        return model.encoder(pixel_values=images).last_hidden_state

    return build_captioner(name, source, options, model, encode, decoder, size if isinstance(size, int) else size[0])


class _CrossDecoder(TextDecoder):
    """A decoder with cross-attention in every block, in the form of transformers' classes.

    Its `body` takes `inputs_embeds`, `position_ids`, `encoder_hidden_states`, a cache and the further options; `ends`
    are the tokens around a caption.
    """

    def __init__(
        self,
        model: Any,
        body: Any,
        head: Callable[[Tensor], Tensor],
        n_positions: int,
        kv_shape: tuple[int, int, int],
        ends: tuple[int, int],
        **options: bool,
    ) -> None:
        self.embedding, self._body, self._head, self._options = model.get_input_embeddings(), body, head, options
        self.vocabulary_size, self.width = self.embedding.weight.shape
        self.start_ids, self.end_id = ends[:1], ends[1]
        self.budget, self.kv_shape = n_positions - 1, kv_shape
        self.project: Callable[[Tensor], Tensor] = lambda features: features

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.embedding(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Compute the keys and values of the image in every block, by the decoder itself."""
        states = self.project(features)
        start = torch.tensor([self.start_ids], device=features.device).expand(len(features), -1)
        read = self.run(KVCache(states=states), self.embed(start))[1]  # what it says of the token is thrown away
        return KVCache(states=states, crossed=read.crossed)

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        places = torch.arange(kv_cache.n_read, kv_cache.n_read + x.shape[1], device=x.device).expand(x.shape[0], -1)
        # BLIP adds positions in place
        return run_crossed(self._body, kv_cache, x.clone(), position_ids=places, **self._options)

    def head(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


def load_git(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a `GitForCausalLM`; a prompt stands after its start token [CLS]."""
    model = load_frozen(GitForCausalLM, source, options)

    def encode(images: Tensor) -> Tensor:
        return model.git.image_encoder(images).last_hidden_state

    size = model.config.vision_config.image_size
    return build_captioner(name, source, options, model, encode, _GitDecoder(name, model), size)


class _GitDecoder(TextDecoder):
    """GIT: image tokens and words in one decoder, the image seen whole, the words from left to right.

    Positions count words alone. The library's own loss was one token off for years, so captioners compute theirs.
    """

    def __init__(self, name: str, model: GitForCausalLM) -> None:
        config, generation = model.config, model.generation_config
        self.git, self.output = model.git, model.output
        self.width, self.vocabulary_size = config.hidden_size, config.vocab_size
        self.start_ids = (first_id(name, "start", generation.bos_token_id, config.bos_token_id),)
        self.end_id = first_id(name, "end", generation.eos_token_id, config.eos_token_id)
        self.budget = config.max_position_embeddings - 1
        n_heads = config.num_attention_heads
        self.kv_shape = (config.num_hidden_layers, n_heads, config.hidden_size // n_heads)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.git.embeddings.word_embeddings(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the image tokens, which see one another and no word."""
        return KVCache(self._read(KVCache(), self.git.visual_projection(features), None)[1].own)

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        places = torch.arange(kv_cache.n_read, kv_cache.n_read + x.shape[1], device=x.device)
        x = self.git.embeddings(inputs_embeds=x.clone(), position_ids=places[None])  # it adds positions in place
        return self._read(kv_cache, x, causal_mask(kv_cache.own[0][0].shape[2], x))

    def _read(self, kv_cache: KVCache, x: Tensor, mask: Tensor | None) -> tuple[Tensor, KVCache]:
        cache, encoder = to_cache(kv_cache.own), self.git.encoder
        out = encoder(x, attention_mask=mask, use_cache=True, **cache_argument(encoder, cache))
        return out.last_hidden_state, KVCache(from_cache(cache), n_read=kv_cache.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)


def load_blip2(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load a BLIP-2 (Li et al. 2023): a Q-Former turns an image into a few vectors that a language model reads.

    With a decoder-only model such as OPT they stand before the start token, and a prompt after it. With T5 they are the
    first of the encoder's input, and a prompt stands between them and the input's end token.
    """
    config = AutoConfig.from_pretrained(source, **hub_options(options))
    if config.model_type != "blip-2":
        raise UserError(
            f"{source} is a {config.model_type!r} model, but 'blip-2' was expected. InstructBLIP reads a question in "
            "its image encoder, which a prompt cannot stand in for. Use a Blip2ForConditionalGeneration."
        )
    model = load_frozen(Blip2ForConditionalGeneration, source, options)

    def encode(pixels: Tensor) -> Tensor:
        return model.get_image_features(pixels).pooler_output

    lm, text = model.language_model, model.config.text_config
    decoder: TextDecoder
    if config.use_decoder_only_language_model:
        start, end = first_id(source, "start", text.bos_token_id), first_id(source, "end", text.eos_token_id)
        decoder = PrefixDecoder(lm, nn.Identity(), start, end, config.num_query_tokens)
    elif text.model_type == "t5":
        decoder = _T5Decoder(lm)
    else:
        raise UserError(
            f"{source} has a language model of type {text.model_type!r}, but 't5' or a decoder-only one such as 'opt' "
            "was expected. Use another BLIP-2 checkpoint."
        )
    return build_captioner(name, source, options, model, encode, decoder, config.vision_config.image_size)


class _T5Decoder(TextDecoder):
    """A `T5ForConditionalGeneration`, whose encoder reads image vectors, a prompt and the end token.

    Learned keys and values come before the start token in the decoder's self-attention; T5's positions are distances,
    so that they are at the distances of tokens standing there.
    """

    slot: Literal["decoder", "encoder"] = "encoder"

    def __init__(self, lm: Any) -> None:
        config = lm.config
        self.lm = lm
        self.width, self.vocabulary_size = config.d_model, lm.lm_head.weight.shape[0]
        self.start_ids, self.end_id = (config.decoder_start_token_id,), config.eos_token_id
        self.budget = T5_LENGTH
        self.kv_shape = (config.num_decoder_layers, config.num_heads, config.d_kv)
        self._scale = config.d_model**-0.5 if config.scale_decoder_outputs else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed tokens; encoder and decoder share the embeddings."""
        return self.lm.get_input_embeddings()(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Run the encoder over image vectors, prompt and end token."""
        end = torch.full((len(features), 1), self.end_id, device=features.device)
        parts = [features, *([] if soft is None else [soft.to(features.dtype)]), self.embed(end)]
        return KVCache(states=self.lm.encoder(inputs_embeds=torch.cat(parts, dim=1)).last_hidden_state)

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        return run_crossed(self.lm.decoder, kv_cache, x)

    def head(self, hidden: Tensor) -> Tensor:
        return self.lm.lm_head(hidden if self._scale is None else hidden * self._scale)
