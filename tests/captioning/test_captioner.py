"""A steered captioner: prompts in a batch, in files, in words, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import mmprompt as mp
from mmprompt.captioning import predictor as module
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.measure import measure_captions
from mmprompt.captioning.predictor import Captioner, CaptionTemplate, Guidance, focus_of, hard_prompt, load_focus
from mmprompt.captioning.readers.captioner import LM_INPUT
from mmprompt.core.file import load, save
from mmprompt.core.header import header_hash, read_header
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.models.sites import Site
from tests.small_captioners import small_captioner


@pytest.fixture(scope="module")
def captioner():
    return small_captioner()


@pytest.fixture
def images():
    return [Image.new("RGB", (8, 8), (40 * n, 255 - 40 * n, 90)) for n in range(5)]


def learned(captioner, seed, n=3, focus="numbers", own_words=None):
    values = torch.randn(n, captioner.decoder.width, generator=torch.Generator().manual_seed(seed))
    return Prompt(CaptionTemplate(focus, own_words=own_words or {}), Learned(LM_INPUT, values)).double()


def learned_kv(captioner, seed):
    n_layers, n_heads, width = captioner.decoder.kv_shape
    rng = torch.Generator().manual_seed(seed)
    values = [torch.randn(2, 2 * n_heads * width, generator=rng) for _ in range(n_layers)]
    sources = [Learned(Site("lm.kv", layer), value) for layer, value in enumerate(values)]
    return Prompt(CaptionTemplate("numbers"), *sources).double()


def as_learned(captioner, prompt):
    return Captioner(captioner, Guidance(((prompt, 1.0),)))


def with_prompt(captioner, prompt):
    return Captioner(captioner, Guidance(((prompt, 1.0),)), Decoding(max_tokens=8))


def texts(captions):
    return [caption.text for caption in captions]


def test_pictures_of_different_prompts_get_what_each_gets_alone(captioner, images):
    one, other, kv = learned(captioner, 1), learned(captioner, 2, n=5), learned_kv(captioner, 3)
    seven = learned(captioner, 4, own_words={"7": ((7,),)})
    each = [
        Guidance(((one, 1.0),)),
        Guidance(((other, 1.0),), strength=1.5),
        Guidance(),
        Guidance(((one, 1.0), (other, 2.0)), avoid=seven),
        Guidance(((kv, 1.0),)),
    ]
    steered = Captioner(captioner, decoding=Decoding(max_tokens=8))
    together = steered.caption(images, each)
    alone = [steered.caption(image, guidance)[0] for image, guidance in zip(images, each, strict=True)]
    assert texts(together) == texts(alone)
    assert len(set(texts(together))) == len(images)
    assert [caption.log_prob for caption in together] == pytest.approx(
        [caption.log_prob for caption in alone], rel=1e-5
    )


def test_prompts_of_one_weight_say_what_each_says_alone_in_one_caption(captioner, images):
    one, other = learned(captioner, 1), learned(captioner, 2)
    steered = Captioner(captioner, decoding=Decoding(max_tokens=8))
    alone = [texts(steered.caption(images, Guidance(((prompt, 1.0),)))) for prompt in (one, other)]
    both = steered.caption(images, Guidance(((one, 2.0), (other, 2.0))))
    assert texts(both) == [f"{first}. {second}." for first, second in zip(*alone, strict=True)]
    assert [caption.n_tokens for caption in both] == [len(text.replace(".", "").split()) for text in texts(both)]


def test_the_heavier_prompt_speaks_first_and_a_lighter_one_is_weaker(captioner, images):
    one, other = learned(captioner, 1), learned(captioner, 2)
    steered = Captioner(captioner, decoding=Decoding(max_tokens=8))
    heavy = texts(steered.caption(images, Guidance(((other, 1.0),))))
    light = texts(steered.caption(images, Guidance(((one, 1.0),), strength=0.25)))
    both = steered.caption(images, Guidance(((one, 1.0), (other, 4.0))))
    assert texts(both) == [f"{first}. {second}." for first, second in zip(heavy, light, strict=True)]
    unprompted = texts(steered.caption(images))
    assert texts(steered.caption(images, Guidance(((one, 1.0), (other, 4.0)), strength=0.0))) == unprompted


def test_words_of_an_avoided_focus_are_not_said_unless_that_costs_nothing(captioner, images):
    steered = Captioner(captioner, decoding=Decoding(max_tokens=8))
    plain = texts(steered.caption(images))
    said = {word for text in plain for word in text.split()}
    away = learned(captioner, 4, own_words={word: ((int(word),),) for word in sorted(said)[:5]})
    found = texts(steered.caption(images, Guidance(avoid=away)))
    assert not {word for text in found for word in text.split()} & set(sorted(said)[:5])
    assert texts(steered.caption(images, Guidance(avoid=away, avoid_strength=0.0))) == plain


def test_a_focus_without_words_of_its_own_cannot_be_avoided(captioner):
    with pytest.raises(
        UserError, match=r"the prompt of numbers names no words of its own that could be avoided\. Learn"
    ):
        Guidance(avoid=learned(captioner, 1))


def test_own_words_are_kept_in_the_file_and_files_without_them_are_read(captioner, tmp_path):
    own = {"7": ((7,), (5, 7))}
    save(as_learned(captioner, learned(captioner, 4, own_words=own)), tmp_path / "run")
    assert load_focus(tmp_path / "run", captioner).template == CaptionTemplate("numbers", "", own)
    header = read_header(tmp_path / "run")
    del header["own_words"]
    seal(tmp_path / "run", header)
    assert load_focus(tmp_path / "run", captioner).template == CaptionTemplate("numbers")
    seal(tmp_path / "run", header | {"own_words": {"7": "7"}})
    with pytest.raises(UserError, match=r"prompt\.json: own_words\.7 is '7', but"):
        load_focus(tmp_path / "run", captioner)


def test_a_prompt_of_words_says_what_their_tokens_give(captioner, images):
    words = hard_prompt(captioner, "numbers", "5 9 12")
    found = Captioner(captioner, Guidance(((words, 1.0),)), Decoding(max_tokens=6)).caption(images)
    features = captioner.encode_image(torch.stack([captioner.preprocess(image) for image in images]))
    ids = torch.tensor([[5, 9, 12]] * len(images))
    state = captioner.prefill(captioner.open(features), {})
    for column in ids.T:
        state = captioner.step(state, column)
    first = state.logits.argmax(-1).tolist()
    assert [caption.text.split()[:1] for caption in found] == [[str(token)] if token != 1 else [] for token in first]


@pytest.mark.parametrize("make", [learned, learned_kv])
def test_a_saved_prompt_says_the_same_and_takes_kilobytes(captioner, images, tmp_path, make):
    prompt = make(captioner, 4)
    save(as_learned(captioner, prompt), tmp_path / "run", {"seed": 1})
    again = load_focus(tmp_path / "run", captioner)
    before, after = (with_prompt(captioner, one).caption(images) for one in (prompt, again))
    assert texts(before) == texts(after)
    assert focus_of(again) == "numbers"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert sum(path.stat().st_size for path in (tmp_path / "run").iterdir()) < 5000


def test_a_prompt_of_another_captioner_is_refused(captioner, tmp_path):
    save(as_learned(captioner, learned(captioner, 4)), tmp_path / "run")
    other = small_captioner(scale=5.0)
    for loaded_by in (load_focus, load):
        with pytest.raises(UserError, match="this prompt was learned on small"):
            loaded_by(tmp_path / "run", other)


def test_prompts_of_captioners_and_classifiers_are_told_apart(captioner, tmp_path):
    save(as_learned(captioner, learned(captioner, 4)), tmp_path / "run")
    header = read_header(tmp_path / "run") | {"kind": "classification"}
    seal(tmp_path / "run", header)
    with pytest.raises(UserError, match=r"is a prompt for classification, not for captioning\. Use mmprompt predict"):
        load_focus(tmp_path / "run", captioner)
    header.pop("kind")
    seal(tmp_path / "run", header)
    with pytest.raises(UserError, match="is of kind None, but one of classification, captioning, language"):
        load_focus(tmp_path / "run", captioner)


def seal(folder, header):
    """Write a header with a fresh hash, as another program would."""
    (folder / "prompt.json").write_text(json.dumps(header | {"header_sha256": header_hash(header)}))


def test_vectors_of_another_width_are_refused(captioner, images):
    wrong = Prompt(CaptionTemplate("numbers"), Learned(LM_INPUT, torch.zeros(2, 7)))
    with pytest.raises(UserError, match="are 7 wide, but small takes 32"):
        Captioner(captioner, Guidance(((wrong, 1.0),))).caption(images)


def test_more_vectors_than_there_is_room_for_are_refused(captioner, images):
    long = learned(captioner, 1, n=60)
    with pytest.raises(UserError, match="the prompt takes 60 slots, but small has 60"):
        Captioner(captioner, Guidance(((long, 1.0),))).caption(images)


@pytest.mark.parametrize("strength", [-1, 1e300, float("nan"), float("inf"), "2", None, True])
def test_a_strength_is_a_number_that_captions_survive(strength):
    with pytest.raises(UserError, match="it must be a number from 0 to 100"):
        Guidance(strength=strength)


def test_a_weight_is_above_0(captioner):
    with pytest.raises(UserError, match="weight of numbers is 0, but it must be a number, above 0"):
        Guidance(((learned(captioner, 1), 0),))


def test_pairs_of_prompts_and_weights_may_be_read_once(captioner, images):
    prompts = [learned(captioner, 1), learned(captioner, 2)]
    once = Guidance(zip(prompts, [1.0, 2.0], strict=True))
    assert once == Guidance(tuple(zip(prompts, [1.0, 2.0], strict=True)))
    with pytest.raises(UserError, match="prompts is of type tuple, but it must be a list"):
        Guidance(zip([1], [1.0], strict=True))


def test_a_prompt_of_a_classifier_steers_no_captions(captioner):
    prompt = mp.zero_shot(mp.load_backbone("tiny"), ["dog", "cat"], "a large {}").prompt
    for steer in ({"prompts": ((prompt, 1.0),)}, {"avoid": prompt}):
        with pytest.raises(UserError, match=r"prompt is of 'a large \{\}', but a prompt for captions was expected"):
            Guidance(**steer)
    with pytest.raises(UserError, match="but a prompt for captions was expected"):
        measure_captions(captioner, mp.load_captions("openart-scenes"), [prompt])


@pytest.mark.parametrize("more", [{"strength": 2.0}, {"avoid": True}, {"decoding": Decoding(max_tokens=8)}])
def test_what_a_prompt_file_does_not_keep_is_not_saved(captioner, more, tmp_path):
    prompt = learned(captioner, 4, own_words={"7": ((7,),)})
    avoid, decoding = prompt if "avoid" in more else None, more.get("decoding", Decoding())
    steered = Captioner(captioner, Guidance(((prompt, 1.0),), more.get("strength", 1.0), avoid), decoding)
    with pytest.raises(UserError, match=r"a prompt file keeps the prompt alone.* Save Captioner\(backbone, Guidance"):
        mp.save(steered, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_there_is_one_prompt_a_picture(captioner, images):
    with pytest.raises(UserError, match="there are 5 images and 2 prompts"):
        Captioner(captioner).caption(images, [Guidance(), Guidance()])


def test_n_best_captions_come_in_order(captioner, images):
    found = Captioner(captioner, decoding=Decoding(max_tokens=6, n_beams=4, n_best=3)).caption(images)
    for caption in found:
        scores = [caption.score, *(other.score for other in caption.others)]
        assert scores == sorted(scores, reverse=True)
        assert len({caption.text, *texts(caption.others)}) == 3
        assert set(caption.to_dict()) == {"text", "log_prob", "score", "n_tokens", "is_cut", "others"}


def test_prompts_that_leave_different_numbers_of_captions_make_as_many_as_both_have(captioner, images):
    prompts = learned(captioner, 1), learned(captioner, 2)
    steered = Captioner(captioner, decoding=Decoding(max_tokens=1, min_tokens=0, n_beams=40, n_best=40))
    alone = [steered.caption(images, Guidance(((prompt, 1.0),), strength=10.0)) for prompt in prompts]
    both = steered.caption(images, Guidance(((prompts[0], 1.0), (prompts[1], 1.0)), strength=10.0))
    counts = [[1 + len(caption.others) for caption in found] for found in (*alone, both)]
    assert counts[2] == list(map(min, *counts[:2]))
    assert counts[0] != counts[1]


def test_the_module_has_no_more_than_a_batch_in_memory(captioner, monkeypatch, images):
    monkeypatch.setattr(module, "BATCH", 2)
    counts = []
    steered = Captioner(captioner, decoding=Decoding(max_tokens=3), progress=lambda done, of: counts.append((done, of)))
    assert texts(steered.caption(images)) == texts(
        Captioner(captioner, decoding=Decoding(max_tokens=3)).caption(images)
    )
    assert counts == [(2, 5), (4, 5), (5, 5)]
