"""Captioners whose language model reads image vectors as tokens, held to transformers' own forward and generate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.image_text import ImageTextDecoder, load_image_text
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.readers.transformers_captioners import load_blip2
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.sites import Site, Vectors
from tests import small_multimodal as small

N_ROWS, PROMPT, CAPTION = 3, 4, 6
ENDS = [small.EOS, small.TURN]


@dataclass(frozen=True)
class Kind:
    """A kind of captioner: how it is saved and loaded, and how the library itself is given the same rows.

    Args:
        frame: token ids before the prompt and after it, of the input that holds the image.
        text: settings of the language model.
        suffix_type: of tokens behind the opening, for classes that tell kinds of tokens apart.
        hooked: whether vectors go in by the hook; None for the class's own way.
    """

    save: Callable[..., Path]
    load: Callable[..., FrozenCaptioner]
    frame: Callable[[FrozenCaptioner], tuple[list[int], list[int]]]
    text: dict[str, Any]
    suffix_type: int | None = None
    hooked: bool | None = None


def opening(captioner: FrozenCaptioner) -> tuple[list[int], list[int]]:
    decoder: Any = captioner.decoder
    return decoder.opening.token_ids.tolist(), []


IMAGES = [small.IMAGE_ID] * 3
KINDS = {
    "blip2-opt": Kind(small.save_blip2_opt, load_blip2, lambda _: ([*IMAGES, small.BOS], []), {}),
    "blip2-t5": Kind(small.save_blip2_t5, load_blip2, lambda _: (IMAGES, [small.EOS]), {"scale_decoder_outputs": True}),
    "blip2-flan": Kind(
        small.save_blip2_t5,
        load_blip2,
        lambda _: (IMAGES, [small.EOS]),
        {
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "scale_decoder_outputs": False,
            "num_decoder_layers": 3,
        },
    ),
    "llava": Kind(small.save_llava, load_image_text, opening, {}),
    "llava-hooked": Kind(small.save_llava, load_image_text, opening, {}, hooked=True),
    "paligemma": Kind(small.save_paligemma, load_image_text, opening, {}, suffix_type=1),
    "paligemma2": Kind(
        small.save_paligemma,
        load_image_text,
        opening,
        {"kind": "gemma2", "sliding_window": 32, "final_logit_softcapping": 2.0},
        suffix_type=1,
    ),
    "gemma3": Kind(small.save_gemma3, load_image_text, opening, {}, suffix_type=0),
}
EXACT = 1e-10


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: KINDS[name].save(tmp_path_factory.mktemp(name), **KINDS[name].text))


@pytest.fixture(scope="module")
def load(save: Callable[[str], Path]) -> Callable[..., FrozenCaptioner]:
    @cache
    def loaded(name: str, dtype: torch.dtype = torch.float64) -> FrozenCaptioner:
        captioner = KINDS[name].load(name, str(save(name)), LoadOptions(torch.device("cpu"), dtype))
        if KINDS[name].hooked is not None:
            decoder: Any = captioner.decoder
            captioner.decoder = ImageTextDecoder(captioner.model, decoder.opening, decoder.end_id, KINDS[name].hooked)
        return captioner

    return loaded


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def captioner(kind: str, load: Callable[..., FrozenCaptioner]) -> FrozenCaptioner:
    return load(kind)


@pytest.fixture
def kv_cache(captioner: FrozenCaptioner, pixels: Tensor) -> KVCache:
    return captioner.open(captioner.encode_image(pixels))


def words(seed: int, *shape: int) -> Tensor:
    """Ids of ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(small.SPECIALS), small.VOCABULARY, shape, generator=generator)


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def soft(captioner: FrozenCaptioner, prompt: Tensor) -> dict[Site, Vectors]:
    return {LM_INPUT: Vectors(captioner.decoder.embed(prompt), "image" if prompt.dim() == 2 else "shared")}


def library_inputs(kind: str, captioner: FrozenCaptioner, pixels: Tensor, middle: Tensor) -> dict[str, Tensor]:
    """Ids [N, S] of what stands before the prompt, the prompt and what stands after it, with masks and types."""
    before, after = (torch.tensor(ids, dtype=torch.int64) for ids in KINDS[kind].frame(captioner))
    n_rows = len(middle)
    ids = torch.cat([before.expand(n_rows, -1), middle, after.expand(n_rows, -1)], dim=1)
    inputs = {"input_ids": ids, "pixel_values": pixels.to(captioner.dtype), "attention_mask": torch.ones_like(ids)}
    if KINDS[kind].suffix_type is not None:
        decoder: Any = captioner.decoder
        types = torch.full_like(ids, KINDS[kind].suffix_type)
        types[:, : len(before)] = decoder.opening.types["token_type_ids"]
        inputs["token_type_ids"] = types
    return inputs


def library_logits(
    kind: str, captioner: FrozenCaptioner, pixels: Tensor, prompt: Tensor, caption: Tensor, values: Tensor | None = None
) -> Tensor:
    """The logits [N, L, V] of the caption by the library's own forward; `values` [K, D] stand in for the prompt's."""
    model: Any = captioner.model
    n_before = len(KINDS[kind].frame(captioner)[0])
    is_t5 = captioner.decoder.slot == "encoder"
    inputs = library_inputs(kind, captioner, pixels, prompt if is_t5 else torch.cat([prompt, caption], dim=1))
    if values is not None:
        embeds = captioner.decoder.embed(inputs["input_ids"]).clone()
        embeds[:, n_before : n_before + prompt.shape[1]] = values
        inputs |= {"input_ids": None, "inputs_embeds": embeds}
    if is_t5:
        start = torch.full_like(caption[:, :1], small.PAD)
        return model(**inputs, decoder_input_ids=torch.cat([start, caption[:, :-1]], dim=1)).logits
    first = n_before + prompt.shape[1] - 1
    return model(**inputs).logits[:, first : first + caption.shape[1]]


def test_a_prompt_of_token_embeddings_gives_what_the_token_ids_give(
    kind: str, captioner: FrozenCaptioner, kv_cache: KVCache, pixels: Tensor
) -> None:
    prompt, caption = words(1, N_ROWS, PROMPT), words(2, N_ROWS, CAPTION)
    ours = captioner.logits(kv_cache, soft(captioner, prompt), caption)
    theirs = library_logits(kind, captioner, pixels, prompt, caption)
    assert difference(ours, theirs) < EXACT
    losses = [F.cross_entropy(logits.flatten(0, 1), caption.flatten()).item() for logits in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=EXACT)


def test_without_a_prompt_the_logits_are_the_librarys(
    kind: str, captioner: FrozenCaptioner, kv_cache: KVCache, pixels: Tensor
) -> None:
    caption = words(2, N_ROWS, CAPTION)
    theirs = library_logits(kind, captioner, pixels, words(1, N_ROWS, 0), caption)
    assert difference(captioner.logits(kv_cache, {}, caption), theirs) < EXACT


def test_captions_hang_on_the_image(captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    caption = words(2, 1, CAPTION).expand(N_ROWS, -1)
    logits = captioner.logits(kv_cache, {}, caption)
    assert min(difference(logits[:1], logits[1:2]), difference(logits[1:2], logits[2:])) > 1e-4


def test_learned_vectors_give_what_the_library_makes_of_inputs_embeds(
    kind: str, captioner: FrozenCaptioner, kv_cache: KVCache, pixels: Tensor
) -> None:
    values = torch.randn(
        PROMPT, captioner.decoder.width, dtype=captioner.dtype, generator=torch.Generator().manual_seed(5)
    )
    prompt, caption = words(1, N_ROWS, PROMPT), words(2, N_ROWS, CAPTION)
    ours = captioner.logits(kv_cache, {LM_INPUT: Vectors(values)}, caption)
    assert difference(ours, library_logits(kind, captioner, pixels, prompt, caption, values)) < EXACT


def test_a_greedy_caption_is_the_one_of_generate(
    kind: str, captioner: FrozenCaptioner, kv_cache: KVCache, pixels: Tensor
) -> None:
    prompt, n_new = words(1, N_ROWS, PROMPT), 8
    model: Any = captioner.model
    given: dict[str, Any] = dict(library_inputs(kind, captioner, pixels, prompt))
    if kind == "blip2-flan":  # the library sizes the cache of generate by the encoder's blocks
        given |= {"use_cache": False}
    told = model.generate(**given, max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False)
    state, chosen = captioner.prefill(kv_cache, soft(captioner, prompt)), []
    for _ in range(n_new):
        chosen.append(state.logits.index_fill(1, torch.tensor(ENDS), float("-inf")).argmax(dim=1))
        state = captioner.step(state, chosen[-1])
    assert torch.equal(torch.stack(chosen, dim=1), told[:, -n_new:])


def test_steps_give_what_a_whole_caption_gives(kind: str, captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    caption, prompt = words(2, N_ROWS, CAPTION), soft(captioner, words(1, PROMPT))
    state = captioner.prefill(kv_cache, prompt)
    stepped = [state.logits]
    for token in caption[:, :-1].unbind(1):
        state = captioner.step(state, token)
        stepped.append(state.logits)
    assert difference(torch.stack(stepped, 1), captioner.logits(kv_cache, prompt, caption)) < EXACT


def test_wanted_logits_are_those_of_the_wanted_tokens(captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    caption, wanted = words(2, N_ROWS, CAPTION), words(3, N_ROWS, CAPTION) % 2 == 0
    assert torch.allclose(
        captioner.logits(kv_cache, {}, caption, wanted), captioner.logits(kv_cache, {}, caption)[wanted], rtol=1e-9
    )


def test_rows_may_be_repeated_and_reordered(kind: str, captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    prompt, caption, rows = words(1, N_ROWS, PROMPT), words(2, N_ROWS, CAPTION), torch.tensor([2, 0, 0, 1])
    state = captioner.step(captioner.prefill(kv_cache, soft(captioner, prompt)), caption[:, 0])
    moved = captioner.step(state.select(rows), caption[rows, 1]).logits
    assert difference(moved, captioner.step(state, caption[:, 1]).logits[rows]) < EXACT
    again = captioner.logits(kv_cache.select(rows), soft(captioner, prompt[rows]), caption[rows])
    assert difference(again, captioner.logits(kv_cache, soft(captioner, prompt), caption)[rows]) < EXACT


def test_rows_do_not_see_one_another(kind: str, captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    prompt, caption = words(1, N_ROWS, PROMPT), words(2, N_ROWS, CAPTION)
    together = captioner.logits(kv_cache, soft(captioner, prompt), caption)
    for row in range(N_ROWS):
        one = torch.tensor([row])
        alone = captioner.logits(kv_cache.select(one), soft(captioner, prompt[one]), caption[one])
        assert difference(together[one], alone) < EXACT


def test_keys_and_values_of_tokens_give_what_the_tokens_give(
    kind: str, captioner: FrozenCaptioner, kv_cache: KVCache
) -> None:
    caption, tokens = words(2, N_ROWS, CAPTION), words(4, N_ROWS, PROMPT)
    decoder = captioner.decoder
    opened = decoder.open(kv_cache.states, None) if decoder.slot == "encoder" else kv_cache
    _, read = decoder.run(opened, decoder.embed(tokens))
    pairs = [[part[:, :, -PROMPT:] for part in pair] for pair in read.own]
    vectors = {
        Site("lm.kv", layer): Vectors(torch.cat([part.transpose(1, 2).flatten(2) for part in pair], dim=-1), "image")
        for layer, pair in enumerate(pairs)
    }
    start = torch.tensor([decoder.start_ids]).expand(N_ROWS, -1)
    x = decoder.embed(torch.cat([start, caption[:, :-1]], dim=1))
    expected = decoder.head(decoder.run(read, x)[0])
    assert difference(captioner.logits(kv_cache, vectors, caption), expected) < EXACT


def test_every_learned_key_and_value_has_a_gradient(captioner: FrozenCaptioner, kv_cache: KVCache) -> None:
    assert captioner.decoder.kv_shape is not None
    n_layers, n_heads, head = captioner.decoder.kv_shape
    generator = torch.Generator().manual_seed(6)
    leaves = [
        torch.randn(2, 2 * n_heads * head, generator=generator, dtype=captioner.dtype, requires_grad=True)
        for _ in range(n_layers)
    ]
    vectors = {Site("lm.kv", layer): Vectors(leaf) for layer, leaf in enumerate(leaves)}
    captioner.logits(kv_cache, vectors, words(2, N_ROWS, CAPTION)).logsumexp(-1).sum().backward()
    assert all(leaf.grad is not None and (leaf.grad != 0).all() for leaf in leaves)


def test_nothing_that_was_given_is_changed(captioner: FrozenCaptioner, pixels: Tensor) -> None:
    features = captioner.encode_image(pixels)
    values = torch.nn.Parameter(captioner.decoder.embed(words(1, PROMPT)))
    kv_cache = captioner.open(features)
    held = [part for pair in (*kv_cache.own, *kv_cache.crossed) for part in pair]
    held += [features, values] + ([] if kv_cache.states is None else [kv_cache.states])
    before = [tensor.detach().clone() for tensor in held]
    state = captioner.prefill(kv_cache, {LM_INPUT: Vectors(values)})
    kept = [part.detach().clone() for pair in state.kv_cache.own for part in pair]
    captioner.step(state, words(2, N_ROWS))
    captioner.logits(kv_cache, {LM_INPUT: Vectors(values)}, words(2, N_ROWS, CAPTION))
    assert all(torch.equal(tensor, old) for tensor, old in zip(held, before, strict=True))
    after = [part for pair in state.kv_cache.own for part in pair]
    assert all(torch.equal(tensor, old) for tensor, old in zip(after, kept, strict=True))


def test_training_reaches_the_prompt_and_leaves_the_model_as_it_was(
    captioner: FrozenCaptioner, kv_cache: KVCache
) -> None:
    values = torch.nn.Parameter(captioner.decoder.embed(words(1, PROMPT)))
    caption = words(2, N_ROWS, CAPTION)
    logits = captioner.logits(kv_cache, {LM_INPUT: Vectors(values)}, caption)
    F.cross_entropy(logits.flatten(0, 1), caption.flatten()).backward()
    assert values.grad is not None
    assert (values.grad != 0).all()
    assert all(weight.grad is None and not weight.requires_grad for weight in captioner.model.parameters())
    assert captioner.compute_fingerprint() == captioner.fingerprint


def test_float32_gives_the_same_numbers(
    kind: str, captioner: FrozenCaptioner, load: Callable[..., FrozenCaptioner], pixels: Tensor
) -> None:
    single = load(kind, torch.float32)
    prompt, caption = words(1, N_ROWS, PROMPT), words(2, N_ROWS, CAPTION)
    ours = single.logits(single.open(single.encode_image(pixels)), soft(single, prompt), caption)
    assert ours.dtype == torch.float32
    assert difference(ours, library_logits(kind, single, pixels, prompt, caption)) < 1e-5


def test_a_folder_is_loaded_by_its_name(
    kind: str, save: Callable[[str], Path], load: Callable[..., FrozenCaptioner], pixels: Tensor
) -> None:
    single = load(kind, torch.float32)
    found = load_captioner(str(save(kind)), device="cpu")
    assert found.fingerprint == single.fingerprint
    image = Image.fromarray((pixels[0].permute(1, 2, 0) * 255).byte().numpy()).resize((50, 40))
    state = found.prefill(found.open(found.encode_image(found.preprocess(image)[None])), {})
    assert state.logits.shape == (1, found.decoder.vocabulary_size)
    assert state.logits.isfinite().all()


def test_captions_come_back_from_their_tokens(captioner: FrozenCaptioner) -> None:
    text = "a cat, happy; the dog"
    assert captioner.tokenizer.decode([*captioner.tokenizer.encode(text), captioner.decoder.end_id]) == text
