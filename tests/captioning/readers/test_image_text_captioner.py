"""What is the general reading's own; logits, captions and kv_caches are in test_multimodal_captioners.py."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.readers.image_text import ImageTextDecoder, check_agreement, handing_on, load_image_text
from mmprompt.errors import UserError
from mmprompt.models.frozen import LoadOptions
from mmprompt.models.sites import Vectors
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


def test_images_with_sizes_are_refused(tmp_path: Path) -> None:
    config = LlavaNextConfig(
        vision_config=small.VISION | {"model_type": "clip_vision_model"},
        text_config=small.TEXT | {"model_type": "llama", "vocab_size": small.VOCABULARY},
        image_grid_pinpoints=[[32, 64], [64, 32]],
        image_token_index=small.IMAGE_ID,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_grid_pinpoints=config.image_grid_pinpoints
    )
    chat = small.CHAT.replace("image if", "'<image>' if")
    processor = LlavaNextProcessor(images, small.build_tokenizer(), 8, "default", chat, num_additional_image_tokens=1)
    small.save(LlavaNextForConditionalGeneration(config), tmp_path, processor)
    with pytest.raises(UserError, match="needs image_sizes beside the pixels of an image, but pixels of one size"):
        load_image_text("it", str(tmp_path), CPU)


def test_pixels_by_the_form_of_a_picture_are_refused(tmp_path: Path) -> None:
    small.save_llava(tmp_path, images=CLIPImageProcessor(size={"shortest_edge": 32}, do_center_crop=False))
    with pytest.raises(UserError, match=r"pixels \(1, 3, 32, 48\) and \(1, 3, 48, 32\), but one square"):
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
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    check_agreement(llava, inputs)
    blind = FrozenCaptioner(
        "blind", llava.model, lambda x: 0 * llava.encode_image(x), decoder, llava.tokenizer, llava.pixels
    )
    with pytest.raises(UserError, match="blind is a 'llava' model"):
        check_agreement(blind, inputs)
