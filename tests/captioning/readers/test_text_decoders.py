"""Every decoder against its library's own full forward: prompts, steps, rows, keys and values, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.sites import Site, Vectors
from tests import captioner_models as models
from tests.small_models import IMAGE, save_open_clip

N, WORDS, N_SOFT = 3, 6, 2


@dataclass(frozen=True)
class Case:
    """A captioner, and what its library computes from pixels and token ids in one uncached forward."""

    captioner: FrozenCaptioner
    logits: Callable[[Tensor, Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    is_llama: bool = False


def language_model_case(captioner: FrozenCaptioner) -> Case:
    decoder: Any = captioner.decoder

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        image = decoder.mapper(captioner.encode_image(pixels))
        x = torch.cat([image, decoder.lm.get_input_embeddings()(ids)], dim=1)
        return decoder.lm(inputs_embeds=x, use_cache=False).logits[:, image.shape[1] :]

    return Case(captioner, logits, captioner.encode_image, isinstance(decoder.lm, LlamaForCausalLM))


def blip_case(captioner: FrozenCaptioner) -> Case:
    model: Any = captioner.model
    features = lambda pixels: model(pixel_values=pixels, input_ids=torch.full((N, 1), models.START)).image_embeds  # noqa: E731
    return Case(captioner, lambda pixels, ids: model(pixel_values=pixels, input_ids=ids).logits, features)


def git_case(captioner: FrozenCaptioner) -> Case:
    model: Any = captioner.model

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        return model(pixel_values=pixels, input_ids=ids, use_cache=False).logits[:, -ids.shape[1] :]

    return Case(captioner, logits, lambda pixels: model.git.image_encoder(pixels).last_hidden_state)


def encoder_decoder_case(captioner: FrozenCaptioner) -> Case:
    model: Any = captioner.model
    start = torch.full((N, 1), models.START)
    return Case(
        captioner,
        lambda pixels, ids: model(pixel_values=pixels, decoder_input_ids=ids, use_cache=False).logits,
        lambda pixels: model(pixel_values=pixels, decoder_input_ids=start).encoder_last_hidden_state,
    )


def coca_case(captioner: FrozenCaptioner) -> Case:
    model: Any = captioner.model
    return Case(
        captioner,
        lambda pixels, ids: model(pixels, ids, output_labels=False)["logits"],
        lambda pixels: model(pixels)["image_embs"],
    )


def pair(save: Callable[[Path], Path], kind: str) -> Callable[[Path], Path]:
    """A saver of an encoder, a language model and a mapper between them."""

    def save_all(folder: Path) -> Path:
        encoder, lm = save_open_clip(folder / "encoder"), save(folder / "lm")
        return models.save_trained_pair(f"{encoder} + hf:{lm}", folder / "pair", kind)

    return save_all


CASES: dict[str, tuple[Callable[[Path], Path], Callable[[FrozenCaptioner], Case]]] = {
    "gpt2": (pair(models.save_gpt2, "transformer"), language_model_case),
    "opt": (pair(models.save_opt, "mlp"), language_model_case),
    "opt-narrow": (pair(lambda folder: models.save_opt(folder, 16), "linear"), language_model_case),
    "llama": (pair(models.save_llama, "linear"), language_model_case),
    "llama-grouped": (pair(lambda folder: models.save_llama(folder, 2, 16), "mlp"), language_model_case),
    "blip": (models.save_blip, blip_case),
    "git": (models.save_git, git_case),
    "encoder-decoder": (models.save_encoder_decoder, encoder_decoder_case),
    "encoder-decoder-projected": (lambda folder: models.save_encoder_decoder(folder, 24), encoder_decoder_case),
    "coca": (models.save_coca, coca_case),
}


def loaded(kind: str, folder: Path, dtype: str) -> Case:
    save, describe = CASES[kind]
    place = folder / kind
    found = place / "pair" if (place / "pair").exists() else place
    if not found.exists():
        found = save(place)
    return describe(load_captioner(str(found), device="cpu", dtype=dtype))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, model_folder: Path) -> Case:
    return loaded(request.param, model_folder / "captioners", "float64")


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(N, 3, IMAGE, IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def ids(case: Case) -> Tensor:
    return words_of(case.captioner, WORDS, seed=8)


def words_of(captioner: FrozenCaptioner, n_words: int, seed: int) -> Tensor:
    """Token ids [N, n_words], no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, captioner.decoder.vocabulary_size - 2, (N, n_words), generator=generator)


def starts(captioner: FrozenCaptioner) -> Tensor:
    return torch.tensor([captioner.decoder.start_ids]).expand(N, -1)


def soft_of(captioner: FrozenCaptioner, ids: Tensor) -> dict[Site, Vectors]:
    return {LM_INPUT: Vectors(captioner.decoder.embed(ids), "image")}


def opened(case: Case, pixels: Tensor) -> KVCache:
    return case.captioner.open(case.captioner.encode_image(pixels))


def tensors_of(kv_cache: KVCache) -> list[Tensor]:
    found = [part for pair in (*kv_cache.own, *kv_cache.crossed) for part in pair]
    return found if kv_cache.states is None else [*found, kv_cache.states]


def expect_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= tolerance * expected.abs().max().item()


def test_image_features_are_the_library_s(case: Case, pixels: Tensor) -> None:
    expect_close(case.captioner.encode_image(pixels), case.features(pixels))
    assert case.captioner.image_shape == case.features(pixels).shape[1:]


def test_logits_of_given_captions_are_the_library_s(case: Case, pixels: Tensor, ids: Tensor) -> None:
    expected = case.logits(pixels, torch.cat([starts(case.captioner), ids[:, :-1]], dim=1))
    expect_close(case.captioner.logits(opened(case, pixels), {}, ids), expected)


def test_a_prompt_of_real_tokens_gives_what_their_ids_give(case: Case, pixels: Tensor, ids: Tensor) -> None:
    prompt = words_of(case.captioner, N_SOFT, seed=9)
    expected = case.logits(pixels, torch.cat([starts(case.captioner), prompt, ids[:, :-1]], dim=1))[:, N_SOFT:]
    found = case.captioner.logits(opened(case, pixels), soft_of(case.captioner, prompt), ids)
    expect_close(found, expected)
    loss, wanted = (F.cross_entropy(logits.flatten(0, 1), ids.flatten()) for logits in (found, expected))
    assert abs(loss - wanted) <= 1e-10 * wanted


@pytest.mark.parametrize("kind", CASES)
def test_single_precision_agrees_too(kind: str, model_folder: Path, pixels: Tensor) -> None:
    case = loaded(kind, model_folder / "captioners", "float32")
    prompt, ids = words_of(case.captioner, N_SOFT, seed=9), words_of(case.captioner, WORDS, seed=8)
    pixels = pixels.float()
    expected = case.logits(pixels, torch.cat([starts(case.captioner), prompt, ids[:, :-1]], dim=1))[:, N_SOFT:]
    found = case.captioner.logits(opened(case, pixels), soft_of(case.captioner, prompt), ids)
    assert found.dtype == torch.float32
    expect_close(found, expected, 1e-5)


def test_greedy_captions_are_those_of_uncached_forwards_of_the_ids(case: Case, pixels: Tensor) -> None:
    prompt = words_of(case.captioner, N_SOFT, seed=9)
    state = case.captioner.prefill(opened(case, pixels), soft_of(case.captioner, prompt))
    written = torch.cat([starts(case.captioner), prompt], dim=1)
    for _ in range(WORDS):
        token = state.logits.argmax(dim=-1)
        written = torch.cat([written, case.logits(pixels, written)[:, -1:].argmax(dim=-1)], dim=1)
        assert token.tolist() == written[:, -1].tolist()
        state = case.captioner.step(state, token)


def test_steps_give_the_logits_of_the_whole_caption(case: Case, pixels: Tensor, ids: Tensor) -> None:
    kv_cache, vectors = opened(case, pixels), soft_of(case.captioner, words_of(case.captioner, N_SOFT, seed=9))
    whole = case.captioner.logits(kv_cache, vectors, ids)
    state = case.captioner.prefill(kv_cache, vectors)
    for place in range(WORDS):
        expect_close(state.logits, whole[:, place])
        state = case.captioner.step(state, ids[:, place])


def test_rows_can_be_repeated_and_put_in_another_order(case: Case, pixels: Tensor, ids: Tensor) -> None:
    rows = torch.tensor([2, 0, 0, 1])
    state = case.captioner.step(case.captioner.prefill(opened(case, pixels), {}), ids[:, 0])
    found = case.captioner.step(state.select(rows), ids[rows, 1])
    expect_close(found.logits, case.captioner.step(state, ids[:, 1]).logits[rows])


def test_rows_of_one_batch_do_not_see_one_another(case: Case, pixels: Tensor, ids: Tensor) -> None:
    together = case.captioner.logits(opened(case, pixels), {}, ids)
    for row in range(N):
        one = case.captioner.open(case.captioner.encode_image(pixels[row : row + 1]))
        expect_close(case.captioner.logits(one, {}, ids[row : row + 1]), together[row : row + 1])


def test_only_wanted_logits_are_returned(case: Case, pixels: Tensor, ids: Tensor) -> None:
    wanted = torch.arange(WORDS) < torch.tensor([[2], [6], [3]])
    kv_cache = opened(case, pixels)
    expect_close(case.captioner.logits(kv_cache, {}, ids, wanted), case.captioner.logits(kv_cache, {}, ids)[wanted])


def keys_values_of(case: Case, kv_cache: KVCache, ids: Tensor) -> dict[Site, Vectors]:
    """What every block keeps of tokens that are read right after the image."""
    decoder = case.captioner.decoder
    _, read = decoder.run(kv_cache, decoder.embed(ids))
    sites = {}
    for layer, both in enumerate(read.own):
        last = [part[:, :, -ids.shape[1] :].transpose(1, 2).flatten(2) for part in both]
        sites[Site("lm.kv", layer)] = Vectors(torch.cat(last, dim=-1), "image")
    return sites


def test_keys_and_values_of_real_tokens_give_what_reading_them_first_gives(
    case: Case, pixels: Tensor, ids: Tensor
) -> None:
    prompt, kv_cache = words_of(case.captioner, N_SOFT, seed=9), opened(case, pixels)
    vectors = keys_values_of(case, kv_cache, prompt)
    assert (
        vectors[Site("lm.kv")].values.shape[-1]
        == 2 * case.captioner.decoder.kv_shape[1] * (case.captioner.decoder.kv_shape[2])
    )
    n_start = len(case.captioner.decoder.start_ids)
    read = torch.cat([prompt, starts(case.captioner), ids[:, :-1]], dim=1)
    expected = case.logits(pixels, read)[:, N_SOFT + n_start - 1 :]
    expect_close(case.captioner.logits(kv_cache, vectors, ids), expected)


def shared_vectors(case: Case, mode: str) -> dict[Site, Vectors]:
    """Learned vectors of a mode, as a training would hold them."""
    generator, decoder = torch.Generator().manual_seed(10), case.captioner.decoder
    assert decoder.kv_shape is not None
    n_layers, n_heads, head_width = decoder.kv_shape
    sites = {LM_INPUT: decoder.width}
    if mode == "kv":
        sites = {Site("lm.kv", layer): 2 * n_heads * head_width for layer in range(n_layers)}
    return {
        site: Vectors(torch.randn(N_SOFT, width, dtype=torch.float64, generator=generator).requires_grad_())
        for site, width in sites.items()
    }


@pytest.mark.parametrize("mode", ["soft", "kv"])
def test_gradients_are_those_of_finite_differences_and_nothing_frozen_changes(
    case: Case, pixels: Tensor, ids: Tensor, mode: str
) -> None:
    kv_cache, vectors = opened(case, pixels), shared_vectors(case, mode)
    values = [given.values for given in vectors.values()]

    def loss() -> Tensor:
        return F.cross_entropy(case.captioner.logits(kv_cache, vectors, ids).flatten(0, 1), ids.flatten())

    gradients = torch.autograd.grad(loss(), values)
    assert all(bool(gradient.abs().max() > 0) for gradient in gradients)
    direction = [
        torch.randn(part.shape, dtype=part.dtype, generator=torch.Generator().manual_seed(3)) for part in values
    ]
    slope = sum((gradient * step).sum() for gradient, step in zip(gradients, direction, strict=True))
    ends = []
    # transformers' Llama computes its norms and positions in float32, whatever the weights are.
    length, tolerance = (3e-3, 1e-3) if case.is_llama else (1e-5, 1e-6)
    for move in (length, -2 * length):
        with torch.no_grad():
            for part, step in zip(values, direction, strict=True):
                part += move * step
            ends.append(loss())
    assert abs((ends[0] - ends[1]) / (2 * length) - slope) <= tolerance * abs(slope)
    loss().backward()
    assert all(parameter.grad is None for parameter in case.captioner.model.parameters())
    assert case.captioner.compute_fingerprint() == case.captioner.fingerprint


@pytest.mark.parametrize("mode", ["soft", "kv"])
def test_neither_the_caller_s_tensors_nor_the_memory_change(case: Case, pixels: Tensor, ids: Tensor, mode: str) -> None:
    features = case.captioner.encode_image(pixels)
    kv_cache = case.captioner.open(features)
    state = case.captioner.prefill(kv_cache, shared_vectors(case, mode))
    x = case.captioner.decoder.embed(ids)
    kept = [features, x, *tensors_of(kv_cache), *tensors_of(state.kv_cache)]
    before = [part.clone() for part in kept]
    vectors = shared_vectors(case, mode)
    case.captioner.logits(kv_cache, vectors, ids)
    case.captioner.step(state, ids[:, 0])
    case.captioner.decoder.run(state.kv_cache, x)
    assert all(torch.equal(part, old) for part, old in zip(kept, before, strict=True))
    for site, given in shared_vectors(case, mode).items():
        assert torch.equal(vectors[site].values, given.values)


def test_the_budget_can_be_filled_to_the_last_slot(case: Case, pixels: Tensor) -> None:
    budget = case.captioner.decoder.budget
    assert 4 < budget < 1023
    state = case.captioner.prefill(opened(case, pixels), {})
    for token in words_of(case.captioner, budget, seed=2).T:
        state = case.captioner.step(state, token)
    assert bool(state.logits.isfinite().all())


@pytest.mark.parametrize("kind", ["blip", "git", "encoder-decoder"])
def test_the_loss_is_the_library_s(kind: str, model_folder: Path, pixels: Tensor) -> None:
    case = loaded(kind, model_folder / "captioners", "float64")
    model: Any = case.captioner.model
    ids = words_of(case.captioner, WORDS, seed=8)
    framed = torch.cat([starts(case.captioner), ids], dim=1)
    given = {"decoder_input_ids": framed[:, :-1], "labels": ids} if kind == "encoder-decoder" else {}
    given = given or {"input_ids": framed, "labels": framed}
    text: Any = model.text_decoder if kind == "blip" else None
    if text is not None:
        text.label_smoothing = 0.0  # BLIP's own recipe smooths its labels
    expected = model(pixel_values=pixels, **given).loss
    found = F.cross_entropy(case.captioner.logits(opened(case, pixels), {}, ids).flatten(0, 1), ids.flatten())
    assert abs(found - expected) <= 1e-6 * expected  # GIT's own is in float32


def library_captions(kind: str, case: Case, pixels: Tensor, read: Tensor) -> Tensor:
    """Greedy captions by the library's own `generate`, after given ids."""
    model: Any = case.captioner.model
    settings = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "do_sample": False, "num_beams": 1}
    if kind == "encoder-decoder":
        return model.generate(pixel_values=pixels, decoder_input_ids=read, **settings)[:, read.shape[1] :]
    if kind == "blip":  # its generate takes the last id off
        read = torch.cat([read, read[:, -1:]], dim=1)
        return model.generate(pixel_values=pixels, input_ids=read, **settings)[:, read.shape[1] - 1 :]
    return model.generate(pixel_values=pixels, input_ids=read, **settings)[:, read.shape[1] :]


@pytest.mark.parametrize("kind", ["blip", "git", "encoder-decoder"])
def test_greedy_captions_are_those_of_the_library_s_generate(kind: str, model_folder: Path, pixels: Tensor) -> None:
    case = loaded(kind, model_folder / "captioners", "float64")
    prompt = words_of(case.captioner, N_SOFT, seed=9)
    expected = library_captions(kind, case, pixels, torch.cat([starts(case.captioner), prompt], dim=1))
    state = case.captioner.prefill(opened(case, pixels), soft_of(case.captioner, prompt))
    found = []
    for _ in range(WORDS):
        state.logits[:, case.captioner.decoder.end_id] = float("-inf")
        found.append(state.logits.argmax(dim=-1))
        state = case.captioner.step(state, found[-1])
    assert torch.stack(found, dim=1).tolist() == expected.tolist()


def test_a_mapper_reads_what_its_backbone_gives(model_folder: Path, pixels: Tensor) -> None:
    folder = model_folder / "captioners"
    tokens, pooled = loaded("llama", folder, "float64").captioner, loaded("opt", folder, "float64").captioner
    backbone: Any = load_backbone(str(folder / "llama" / "encoder"), device="cpu", dtype="float64")
    expect_close(tokens.encode_image(pixels), backbone.encode_image_tokens(pixels))
    expect_close(pooled.encode_image(pixels), backbone.encode_image(pixels)[:, None])
