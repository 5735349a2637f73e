"""What is the general reading's own; logits, captions and kv_caches are in test_multimodal_captioners.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessor, Florence2Config, Qwen2VLForConditionalGeneration

from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.image_text import ImageTextDecoder, check_agreement, handing_on, load_image_text
from mmprompt.errors import UserError
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.sites import Site, Vectors
from tests import small_multimodal as small

CPU = LoadOptions(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> FrozenCaptioner:
    return load_image_text("llava", str(small.save_llava(tmp_path_factory.mktemp("llava"))), CPU)


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> FrozenCaptioner:
    return load_image_text("paligemma", str(small.save_paligemma(tmp_path_factory.mktemp("paligemma"))), CPU)


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> FrozenCaptioner:
    return load_image_text("gemma3", str(small.save_gemma3(tmp_path_factory.mktemp("gemma3"))), CPU)


def written(captioner: FrozenCaptioner) -> str:
    decoder: Any = captioner.decoder
    return small.build_tokenizer().decode(decoder.opening.token_ids.tolist())


def test_the_opening_is_what_the_chat_template_writes(llava: FrozenCaptioner, gemma3: FrozenCaptioner) -> None:
    assert written(llava) == f"<s>USER: {'<image>' * 16}\nDescribe the picture. ASSISTANT:"
    assert written(gemma3) == (
        f"<s>USER: \n\n<boi>{'<image>' * 4}<eoi>\n\n\nDescribe the picture. ASSISTANT:"  # as Gemma 3 frames an image
    )


def test_paligemma_is_asked_as_it_was_trained(paligemma: FrozenCaptioner) -> None:
    assert written(paligemma) == f"{'<image>' * 16}<s>caption en\n"


def test_captions_are_cut_as_they_stand_behind_the_opening(llava: FrozenCaptioner, paligemma: FrozenCaptioner) -> None:
    tokenizer = small.build_tokenizer()
    for captioner, blank in ((llava, " "), (paligemma, "")):
        whole = tokenizer(written(captioner) + blank + "cat and dog", add_special_tokens=False)["input_ids"]
        decoder: Any = captioner.decoder
        assert captioner.tokenizer.encode("cat and dog") == whole[len(decoder.opening.token_ids) :]


def test_a_caption_ends_where_the_chat_template_ends_an_answer(llava: FrozenCaptioner, gemma3: FrozenCaptioner) -> None:
    assert llava.decoder.end_id == small.EOS  # the one that it knows
    assert gemma3.decoder.end_id == small.TURN  # of the two that it knows


def test_a_class_is_hooked_when_its_generate_takes_token_ids_alone(
    llava: FrozenCaptioner, paligemma: FrozenCaptioner, gemma3: FrozenCaptioner
) -> None:
    decoders: list[Any] = [captioner.decoder for captioner in (llava, paligemma, gemma3)]
    assert [decoder.hooked for decoder in decoders] == [False, True, True]


def test_both_ways_give_the_same_logits_and_gradients(llava: FrozenCaptioner, pixels: torch.Tensor) -> None:
    decoder: Any = llava.decoder
    results = []
    for hooked in (False, True):
        way = FrozenCaptioner(
            "llava",
            llava.model,
            llava.encode_image,
            ImageTextDecoder(llava.model, decoder.opening, decoder.end_id, hooked),
            llava.tokenizer,
            llava.pixels,
        )
        vectors = torch.linspace(-1, 1, 2 * small.WIDTH).reshape(2, small.WIDTH).requires_grad_()
        caption = torch.tensor([llava.tokenizer.encode("a happy dog")]).expand(3, -1)
        logits = way.logits(way.open(way.encode_image(pixels)), {LM_INPUT: Vectors(vectors)}, caption)
        logits.logsumexp(-1).sum().backward()
        results.append((logits.detach(), vectors.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_hook_is_gone_after_a_failure() -> None:
    embedding, ids = torch.nn.Embedding(5, 2), torch.tensor([[1, 2]])
    expected = embedding(ids)
    with handing_on(embedding, torch.zeros(1, 2, 2)):
        assert (embedding(ids) == 0).all()
    with pytest.raises(IndexError), handing_on(embedding, torch.zeros(1, 2, 2)):
        embedding(ids + 5)
    assert torch.equal(embedding(ids), expected)


def test_threads_do_not_hand_on_each_others_vectors(paligemma: FrozenCaptioner) -> None:
    decoder: Any = paligemma.decoder
    kv_cache = paligemma.open(torch.zeros(1, *paligemma.image_shape))
    first, second = torch.zeros(1, 3, small.WIDTH), torch.ones(1, 3, small.WIDTH)
    expected = decoder.run(kv_cache, first)[0]
    entered, left = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: decoder.run(kv_cache, second))

    def let_the_other_in(module: torch.nn.Module, given: Any) -> None:
        if threading.current_thread() is other:
            entered.set()
            left.wait(5)
        else:
            other.start()
            entered.wait(0.2)  # it waits outside, so that this time runs out

    handle = decoder.model.get_input_embeddings().register_forward_pre_hook(let_the_other_in)
    hidden = decoder.run(kv_cache, first)[0]
    left.set()
    other.join()
    handle.remove()
    assert torch.equal(hidden, expected)


def test_the_images_id_may_have_no_embedding(tmp_path: Path) -> None:
    last = small.VOCABULARY - 1
    small.save_paligemma(tmp_path, image_id=last, vocab_size=last)
    captioner = load_image_text("it", str(tmp_path), CPU)  # it gives the logits of generate
    decoder: Any = captioner.decoder
    assert decoder.vocabulary_size == decoder.opening.token_ids.max() == last


SQUARED = {
    "qwen2-vl": small.save_qwen2_vl,
    "smolvlm": small.save_smolvlm,
    "llava-onevision": small.save_llava_onevision,
}
"""Models that make as many tokens of an image as its form asks for."""


@pytest.fixture(scope="module", params=SQUARED)
def squared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenCaptioner:
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's own processor needs num2words")
    folder = SQUARED[request.param](tmp_path_factory.mktemp(request.param))
    return load_image_text(request.param, str(folder), LoadOptions(torch.device("cpu"), torch.float64))


def scenes() -> list[Image.Image]:
    """A wide image and a high one."""
    return [
        Image.effect_mandelbrot((96, 64), (-3, -2.5, 2, 2.5), 40).convert("RGB"),
        Image.radial_gradient("L").resize((40, 90)).convert("RGB"),
    ]


def asked(captioner: FrozenCaptioner, image: Image.Image, behind: torch.Tensor) -> dict[str, Any]:
    """What the model's own processor makes of an image on the square, with token ids [L] behind the opening."""
    size = captioner.pixels.size
    processor = AutoProcessor.from_pretrained(captioner.model.config.name_or_path)
    square = image.resize((size, size), Image.Resampling.BICUBIC)
    question = [{"type": "image", "image": square}, {"type": "text", "text": "Describe the picture."}]
    inputs = dict(
        processor.apply_chat_template(
            [{"role": "user", "content": question}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    )
    inputs["input_ids"] = torch.cat([inputs["input_ids"], behind[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(behind)))
    return inputs | {"pixel_values": inputs["pixel_values"].to(captioner.dtype)}


def test_images_of_any_form_are_read_as_the_librarys_own_processor_reads_them(squared: FrozenCaptioner) -> None:
    prompt, caption = torch.tensor([45, 60, 51]), torch.tensor([70, 44, 81, 33])
    model: Any = squared.model
    features = squared.encode_image(torch.stack([squared.preprocess(image) for image in scenes()]))
    soft = {LM_INPUT: Vectors(squared.decoder.embed(prompt))}
    ours = squared.logits(squared.open(features), soft, caption.expand(2, -1))
    for row, image in enumerate(scenes()):
        whole = asked(squared, image, torch.cat([prompt, caption]))
        theirs = model(**whole).logits[0, -len(caption) - 1 : -1]
        torch.testing.assert_close(ours[row], theirs, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ours[0], ours[1])


def test_keys_and_values_stand_where_tokens_would(squared: FrozenCaptioner) -> None:
    decoder: Any = squared.decoder
    kv_cache = squared.open(squared.encode_image(squared.preprocess(scenes()[0])[None]))
    tokens, caption = torch.tensor([[45, 60]]), torch.tensor([[70, 44, 81]])
    _, read = decoder.run(kv_cache, decoder.embed(tokens))
    inserts = {
        Site("lm.kv", layer): Vectors(torch.cat([part[0, :, -2:].transpose(0, 1).flatten(1) for part in pair], dim=-1))
        for layer, pair in enumerate(read.own)
    }
    x = decoder.embed(torch.cat([torch.tensor([decoder.start_ids]), caption[:, :-1]], dim=1))
    expected = decoder.head(decoder.run(read, x)[0])
    torch.testing.assert_close(squared.logits(kv_cache, inserts, caption), expected, rtol=1e-9, atol=1e-9)


def test_images_by_their_form_are_squared(tmp_path: Path) -> None:
    small.save_llava(tmp_path, images=CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False))
    captioner = load_image_text("it", str(tmp_path), CPU)  # it gives the logits of generate
    assert captioner.pixels.text == "resize 32 32 bicubic, own processor"
    assert captioner.preprocess(scenes()[0]).shape == (3, 32, 32)


def test_what_an_image_tower_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.save_qwen2_vl(tmp_path)
    monkeypatch.setattr(Qwen2VLForConditionalGeneration, "get_image_features", lambda self, pixel_values: None)
    with pytest.raises(UserError, match="needs image_grid_thw beside the pixels of an image"):
        load_image_text("it", str(tmp_path), CPU)
    monkeypatch.delattr(Qwen2VLForConditionalGeneration, "get_image_features")
    with pytest.raises(UserError, match="is a 'qwen2_vl' model, whose class has no get_image_features"):
        load_image_text("it", str(tmp_path), CPU)


def test_a_model_that_nobody_knows_how_to_ask_is_refused(tmp_path: Path) -> None:
    small.save_llava(tmp_path, chat=None)
    with pytest.raises(UserError, match="has no chat template, so how to ask it for a caption is not known"):
        load_image_text("it", str(tmp_path), CPU)


def test_an_encoder_for_the_text_is_refused(tmp_path: Path) -> None:
    Florence2Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'florence2' model, which reads its question in an encoder"):
        load_image_text("it", str(tmp_path), CPU)


def test_a_model_whose_own_generate_gives_other_logits_is_refused(tmp_path: Path) -> None:
    # The opening's last token sees all of it by the library, and no more than the window when it is read by itself.
    small.save_paligemma(tmp_path, kind="gemma2", sliding_window=8)
    with pytest.raises(UserError, match=r"it is a 'paligemma' model whose own logits differ by \d"):
        load_image_text("it", str(tmp_path), CPU)


def test_the_comparison_with_generate_reads_the_image(llava: FrozenCaptioner) -> None:
    decoder: Any = llava.decoder
    ids = decoder.opening.token_ids[None]
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": pixels}
    check_agreement(llava, inputs, pixels)
    blind = FrozenCaptioner(
        "blind", llava.model, lambda x: 0 * llava.encode_image(x), decoder, llava.tokenizer, llava.pixels
    )
    with pytest.raises(UserError, match="blind is a 'llava' model"):
        check_agreement(blind, inputs, pixels)
