"""Reads transformers' image-text-to-text models (LLaVA and its kin) in a general way: the model's own processor writes
the opening (the question, and the places of the image in it), its own image tower fills those places, and its own
forward runs, so that masks and positions are its own.

One row reads the opening up to its last token, learned keys and values, that last token, a prompt and the caption.
A prompt is read as the first words of the answer. So PaliGemma, whose image attends to the whole question, reads each
image once for all prompts.

Where a model makes as many tokens of an image as its size and form ask for (Qwen2-VL, SmolVLM, LLaVA-OneVision), every
image is first resized to one square, which the model's own image processor then gets. So all images take the same
places, and all positions in the text, of one axis or of three, are those of the opening.

Vectors go in by one of two ways. A class whose `generate` takes `inputs_embeds` is run on vectors. Others (PaliGemma,
Gemma 3) are run on token ids, and a hook on their embedding hands on the vectors instead. Both are exact where a class
makes nothing of the ids of words but their embedding: a loaded model must give the logits of its own `generate`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmprompt.captioning.readers.captioner import (
    CaptionTokenizer,
    FrozenCaptioner,
    TextDecoder,
    caption_tokenizer,
    first_id,
)
from mmprompt.captioning.readers.transformers_captioners import load_frozen
from mmprompt.errors import UserError
from mmprompt.models.decoder.kv_cache import KVCache, cache_argument, from_cache, to_cache
from mmprompt.models.dual_encoder.transformers_clip import read_pixels
from mmprompt.models.frozen import LoadOptions, PixelTransform, hub_options

QUESTION = "Describe the picture."
TASKS = {"paligemma": "<image>caption en"}
"""What models without a chat template were trained to be asked for a caption with."""
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
READ = {"input_ids", "attention_mask", "pixel_values", "labels", *TOKEN_TYPES}
SQUARE = 448
"""Side of the square that images become where the image tower names no size of its own."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Of logits, relative to the largest; some classes compute parts in float32 whatever their weights are."""


@dataclass(frozen=True)
class Opening:
    """What every row reads before its caption, as the model's own processor writes it.

    Token ids [S], the places [T] of the image among them, types [1, S] by the names that the forward takes them by,
    size, which is H = W of the pixels, and positions [3, 1, S] where the model counts them along three axes.
    """

    token_ids: Tensor
    places: Tensor
    types: dict[str, Tensor]
    size: int
    positions: Tensor | None = None


def load_image_text(name: str, source: str, options: LoadOptions) -> FrozenCaptioner:
    """Load an image-text-to-text model and its processor."""
    config = AutoConfig.from_pretrained(source, **hub_options(options))
    if config.is_encoder_decoder:
        raise UserError(
            f"{source} is a {config.model_type!r} model, which reads its question in an encoder, but a decoder that "
            "reads the image was expected. Use another captioner."
        )
    processor = AutoProcessor.from_pretrained(source, **hub_options(options))
    asked = [_ask(source, config, processor, _noise(*shape)) for shape in ((96, 64), (64, 96))]
    is_square = not _is_fixed(*asked)
    own = getattr(getattr(config, "vision_config", None), "image_size", None)  # of the image tower
    square = own if isinstance(own, int) and own > 0 else SQUARE
    size = square if is_square else asked[0]["pixel_values"].shape[3]
    inputs = _ask(source, config, processor, _noise(size, size))
    model = load_frozen(AutoModelForImageTextToText, source, options)
    if not hasattr(model, "get_image_features"):
        raise UserError(
            f"{source} is a {config.model_type!r} model, whose class has no get_image_features to run its image tower "
            "by itself. Use a model such as LLaVA, Qwen2-VL or SmolVLM."
        )
    taken = set(inspect.signature(model.get_image_features).parameters)
    unread = set(inputs) - READ - (taken if is_square else set())
    if unread:
        raise UserError(
            f"{source} needs {', '.join(sorted(unread))} beside the pixels of an image, but what its image tower takes "
            "was expected alone. Use a model such as LLaVA, Qwen2-VL or SmolVLM."
        )
    opening = _opening(model, config, inputs, size)

    def encode(pixels: Tensor) -> Tensor:
        given: dict[str, Any] = {"pixel_values": pixels}
        if is_square:
            squares = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()  # of `square_pixels`
            made = processor.image_processor(images=list(map(Image.fromarray, squares)), return_tensors="pt")
            given = {name: value.to(pixels.device) for name, value in made.items() if name in taken}
            given["pixel_values"] = given["pixel_values"].to(pixels.dtype)
        features = model.get_image_features(**given).pooler_output
        features = torch.stack(list(features))  # some classes give one tensor an image
        return features.reshape(len(pixels), -1, features.shape[-1])

    decoder = ImageTextDecoder(model, opening, _find_end(source, model, processor, len(opening.token_ids)))
    words = caption_tokenizer(processor.tokenizer)
    last = processor.tokenizer.decode(opening.token_ids[-1:].tolist())
    before = last + " " if last.endswith(":") else last  # a tokenizer cuts a word by what precedes it
    n_before = len(words.encode(last))
    tokenizer = CaptionTokenizer(lambda caption: words.encode(before + caption)[n_before:], words.decode)
    pixels = square_pixels(size) if is_square else read_pixels(processor.image_processor, size)
    captioner = FrozenCaptioner(name, model, encode, decoder, tokenizer, pixels)
    check_agreement(captioner, inputs, captioner.preprocess(_noise(size, size))[None])
    return captioner


def _is_fixed(wide: dict[str, Tensor], high: dict[str, Tensor]) -> bool:
    """Return whether the processor makes one square [1, 3, H, H] of images of any form, and nothing else of them."""
    shape = wide["pixel_values"].shape
    is_one = shape == high["pixel_values"].shape and len(shape) == 4 and shape[0] == 1 and shape[2] == shape[3]
    return is_one and not set(wide) - READ


def square_pixels(size: int) -> PixelTransform:
    """Make the transform to a square of a size, in 0..255, for a model's own processor to go on with."""

    def apply(image: Image.Image) -> Tensor:
        small = image.resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float()

    return PixelTransform(apply, (0.0,) * 3, (1 / 255,) * 3, size, f"resize {size} {size} bicubic, own processor")


def _opening(model: Any, config: Any, inputs: dict[str, Tensor], size: int) -> Opening:
    """Read the opening of what the processor made for an image of one size."""
    token_ids = inputs["input_ids"][0]
    places = (token_ids == config.image_token_id).nonzero()[:, 0]
    types = {key: inputs[key] for key in TOKEN_TYPES if key in inputs}
    count = getattr(model.base_model, "get_rope_index", None)
    if count is None:
        return Opening(token_ids, places, types, size)
    known = inspect.signature(count).parameters
    positions, _ = count(**{name: value for name, value in inputs.items() if name in known})
    return Opening(token_ids, places, types, size, positions)


def _ask(source: str, config: Any, processor: Any, image: Image.Image) -> dict[str, Tensor]:
    """Return what the processor makes of an image and the request for a caption."""
    if getattr(processor, "chat_template", None):
        chat = _conversation(image)
        options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return dict(processor.apply_chat_template(chat, **options))
    if config.model_type in TASKS:
        return dict(processor(images=image, text=TASKS[config.model_type], return_tensors="pt"))
    raise UserError(
        f"{source} has no chat template, so how to ask it for a caption is not known. Put its "
        "chat_template.jinja into its folder."
    )


def _conversation(image: Image.Image, answer: str | None = None) -> list[dict[str, Any]]:
    question = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]}
    answers = [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return [question, *answers]


def _noise(width: int, height: int) -> Image.Image:
    """Make an image in which no two places are alike."""
    values = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def _find_end(source: str, model: Any, processor: Any, n_opening: int) -> int:
    """Find the token after a caption: of those that end a generation, the one that ends an answer in the chat."""
    ends = model.generation_config.eos_token_id
    if not isinstance(ends, list) or len(ends) == 1:
        return first_id(source, "end", ends)
    chat = _conversation(_noise(64, 64), answer="x")
    ids = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    return next((int(token) for token in ids[n_opening:] if token in ends), ends[0])


def check_agreement(captioner: FrozenCaptioner, inputs: dict[str, Tensor], pixels: Tensor) -> None:
    """Refuse a captioner whose logits of pixels [1, 3, H, H] are not those of its own processor and `generate`."""
    model: Any = captioner.model
    n_opening = inputs["input_ids"].shape[1]
    length = {"max_new_tokens": 3, "min_new_tokens": 3, "num_beams": 1}
    inputs = {key: value.to(model.device) for key, value in inputs.items() if key != "labels"}
    inputs["pixel_values"] = inputs["pixel_values"].to(captioner.dtype)
    told = model.generate(**inputs, **length, do_sample=False, return_dict_in_generate=True, output_logits=True)
    theirs = torch.stack(told.logits, dim=1)
    kv_cache = captioner.open(captioner.encode_image(pixels))
    with torch.no_grad():
        ours = captioner.logits(kv_cache, {}, told.sequences[:, n_opening:])
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not error <= TOLERANCE.get(captioner.dtype, 0.1):
        raise UserError(
            f"{captioner.name} is a {model.config.model_type!r} model whose own logits differ by {error:.2g} of their "
            "size from those of the general reading, but they were expected to agree. Use a model such as LLaVA, "
            "Qwen2-VL or SmolVLM."
        )


class ImageTextDecoder(TextDecoder):
    """The language model of an image-text-to-text model, run by the whole class's own forward.

    `hooked` says whether vectors go in by a hook on the embedding; None is the way that the class calls for.
    """

    def __init__(self, model: Any, opening: Opening, end_id: int, hooked: bool | None = None) -> None:
        config = model.config.get_text_config()
        self.model, self.opening = model, opening
        self.width = model.get_input_embeddings().weight.shape[1]
        self.vocabulary_size = model.get_output_embeddings().weight.shape[0]
        self.start_ids, self.end_id = (int(opening.token_ids[-1]),), end_id
        self.budget = config.max_position_embeddings - len(opening.token_ids)
        takes_vectors = "inputs_embeds" in inspect.signature(model.prepare_inputs_for_generation).parameters
        self.hooked = not takes_vectors if hooked is None else hooked
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._lock = threading.Lock()
        blank = model.get_input_embeddings().weight.new_zeros(1, len(opening.places), self.width)
        own = self.open(blank, None).own
        shapes = {(part.shape[1], part.shape[3]) for pair in own for part in pair}
        self.kv_shape = (len(own), *shapes.pop()) if len(shapes) == 1 else None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed tokens, as the model scales them."""
        return self.model.get_input_embeddings()(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the opening with the images in their places, all but its last token, which `run` reads.

        That token is read here too, for classes in which the image attends to it, and forgotten.
        """
        token_ids, places = (ids.to(features.device) for ids in (self.opening.token_ids, self.opening.places))
        words = self.embed(token_ids.index_fill(0, places, 0))  # the image's id may have no embedding
        x = words.expand(len(features), -1, -1).index_copy(1, places, features.to(words.dtype))
        types = {key: value.to(x.device).expand(len(x), -1) for key, value in self.opening.types.items()}
        _, kv_cache = self._read(KVCache(), x, token_ids.expand(len(features), -1), types)
        own = tuple((keys[:, :, :-1], values[:, :, :-1]) for keys, values in kv_cache.own)
        return KVCache(own, n_read=kv_cache.n_read - 1)

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        """Read further slots."""
        reserved = torch.full(x.shape[:2], self.start_ids[0], device=x.device)
        return self._read(kv_cache, x, reserved, {})

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states into logits."""
        logits = self.model.get_output_embeddings()(hidden)
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def _read(
        self, kv_cache: KVCache, x: Tensor, token_ids: Tensor, types: dict[str, Tensor]
    ) -> tuple[Tensor, KVCache]:
        base = self.model.base_model
        cache = to_cache(kv_cache.own)
        given = {"use_cache": True, **types, **cache_argument(base, cache)}
        if self.opening.positions is not None:
            given["position_ids"] = self._positions(kv_cache.n_read, *x.shape[:2]).to(x.device)
        if self.hooked:
            with self._lock, handing_on(self.model.get_input_embeddings(), x):
                out = base(input_ids=token_ids, **given)
        else:
            out = base(inputs_embeds=x, **given)
        return out.last_hidden_state, KVCache(from_cache(cache), n_read=kv_cache.n_read + x.shape[1])

    def _positions(self, n_read: int, n_rows: int, n_slots: int) -> Tensor:
        """Return where slots stand along the three axes: [3, N, L]; behind the opening all axes go on alike."""
        opening: Any = self.opening.positions
        n_opening = opening.shape[2]
        behind = torch.arange(n_opening, max(n_opening, n_read + n_slots), device=opening.device)
        behind = behind - n_opening + opening.max() + 1
        whole = torch.cat([opening, behind.expand(3, 1, -1)], dim=2)
        return whole[:, :, n_read : n_read + n_slots].expand(-1, n_rows, -1)


@contextmanager
def handing_on(embedding: nn.Module, vectors: Tensor) -> Iterator[None]:
    """Have an embedding give these vectors [N, L, D] for whatever [N, L] token ids it is asked for."""
    handle = embedding.register_forward_hook(lambda module, given, output: vectors)
    try:
        yield
    finally:
        handle.remove()
