"""Learning a focus: the loss of the papers, a frozen captioner, notices, resume, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from mmprompt.captioning import choice
from mmprompt.captioning import task as captioning
from mmprompt.captioning.cli.write import rank
from mmprompt.captioning.data import NEUTRAL, load_captions
from mmprompt.captioning.mapper import fit_mapper, save_mapped
from mmprompt.captioning.measure import evaluate, measure_captions
from mmprompt.captioning.methods import MAPPER_RECIPE, HardPrompt, LoRA, PrefixTuning, PromptTuning
from mmprompt.captioning.metrics.caption_metrics import clip_score, score_captions
from mmprompt.captioning.predictor import (
    Caption,
    Captioner,
    CaptionFeatures,
    Guidance,
    focus_of,
    load_focus,
)
from mmprompt.captioning.readers.captioner import LM_INPUT
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.task import (
    CaptionProblem,
    encode_captions,
    epochs_of,
    is_no_less,
    start_tokens,
    tokenize_captions,
)
from mmprompt.core import fit as core
from mmprompt.core.method import resolved_recipe, settled
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import TINY, load_backbone
from mmprompt.models.image_features import CPU_BATCH, encode_images
from mmprompt.models.sites import vectors_of
from mmprompt.training.callbacks import Callback
from mmprompt.training.recipe import Recipe
from tests.small_captioners import END, START, small_captioner, small_captions

pytestmark = pytest.mark.usefixtures("feature_store")

QUICK = Recipe(epochs=3, batch_size=4, lr=0.05, checkpoint_seconds=0.0)


def fit(method, captioner, data, out=None, recipe=QUICK, focus="numbers", features=None, **more):
    return core.fit(method, captioner, data.focus(focus, features), out, recipe, progress=False, **more)


@pytest.fixture
def captioner():
    return small_captioner()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return small_captions(folder)


def problem_of(captioner, data, method):
    features = CaptionFeatures(captioner, None)
    prompt = data.focus("numbers", features).predictor(method, captioner, 1).prompt.double()
    captions = encode_captions(captioner, tokenize_captions(captioner, [item.of("numbers") for item in data.train]), 20)
    images = features.of([item.image for item in data.train])
    return CaptionProblem(captioner, prompt, lambda: vectors_of(prompt.inserts()), images, captions), prompt


def plain_loss(captioner, problem, indices, soft):
    """Every caption alone, the whole row through the library's model, nothing kept."""
    decoder, total, n_tokens = captioner.decoder, 0.0, 0
    for row in indices:
        for tokens in problem.captions.token_ids[row]:
            ids = torch.tensor([tokens])
            start = decoder.embed(torch.tensor([[START]]))
            parts = [decoder.mapper(problem.features[[row]]), start, soft[None], decoder.embed(ids)]
            logits = decoder.lm(inputs_embeds=torch.cat(parts, 1)).logits[0, -ids.shape[1] - 1 : -1]
            total = total + F.cross_entropy(logits, ids[0], reduction="sum")
            n_tokens += ids.shape[1]
    return total / n_tokens


def test_loss_and_gradient_are_those_of_whole_rows_one_by_one(captioner, data):
    problem, prompt = problem_of(captioner, data, PromptTuning(4))
    indices = [0, 3, 5, 7]
    (values,) = prompt.parameters()
    ours = problem.step(indices, 0).losses["caption"]
    (our_gradient,) = torch.autograd.grad(ours, values)
    theirs = plain_loss(captioner, problem, indices, vectors_of(prompt.inserts())[LM_INPUT].values)
    (their_gradient,) = torch.autograd.grad(theirs, values)
    # the loss is taken in single precision
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert ((our_gradient - their_gradient).norm() / their_gradient.norm()).item() < 1e-6


@pytest.mark.parametrize("method", [PromptTuning(3), PrefixTuning(2, reparametrise=False)])
def test_what_the_decoder_read_of_the_images_may_be_kept_or_not(captioner, data, monkeypatch, method):
    kept, prompt = problem_of(captioner, data, method)
    monkeypatch.setattr(captioning, "MAX_MEMORY_BYTES", 0)
    unkept, _ = problem_of(captioner, data, method)
    assert kept._kv_cache is not None
    assert unkept._kv_cache is None
    one, other = (problem.loss([0, 4, 7], vectors_of(prompt.inserts())) for problem in (kept, unkept))
    assert one.item() == pytest.approx(other.item(), rel=1e-7)


@pytest.mark.parametrize("method", [PromptTuning(4), PrefixTuning(2)])
def test_a_prompt_learns_and_the_captioner_stays_as_it_was(captioner, data, tmp_path, method):
    before = captioner.compute_fingerprint()
    result = fit(method, captioner, data, tmp_path / "run", epochs=30)
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.85 * losses[0]
    assert captioner.compute_fingerprint() == before
    assert all(parameter.grad is None for parameter in captioner.model.parameters())
    saved = load_focus(tmp_path / "run", captioner)
    learned = vectors_of(result.predictor.prompt.inserts())
    assert saved.sites == result.predictor.prompt.sites
    for site, vectors in vectors_of(saved.inserts()).items():
        assert torch.equal(vectors.values, learned[site].values)
    assert sum(path.stat().st_size for path in (tmp_path / "run").glob("prompt.*")) < 10_000


def test_every_picture_is_encoded_once(captioner, data):
    encoder = captioner.model["encoder"]
    captioner.image_shape  # noqa: B018 - shows the encoder one image of zeros
    encoder.n_seen = 0
    fit(PromptTuning(2), captioner, data, features=CaptionFeatures(captioner, None))
    assert encoder.n_seen == 2 * CPU_BATCH  # the training images, and those of the validation part, in whole batches


def test_a_task_that_two_captioners_learn_shows_each_its_own_features(captioner, data):
    other = small_captioner("gpt2")
    other._encode = lambda images: -captioner.encode_image(images)
    task, losses = data.focus("numbers"), []
    for model in (captioner, other):
        result = core.fit(PromptTuning(2), model, task, recipe=QUICK, progress=False)
        alone = fit(PromptTuning(2), model, data)
        assert result.history[-1]["loss"] == alone.history[-1]["loss"]
        assert result.evaluate().values == alone.evaluate().values
        losses.append(result.history[-1]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (5.0, r"features are of small, but those of small were expected, and the fingerprint differs\. Give features"),
        (6.0, r"features is of \d+ x \d+ numbers an image, but \d+ x \d+ were expected\. Leave `features` out\."),
    ],
    ids=["other weights", "another shape"],
)
def test_features_of_another_captioner_are_refused(captioner, data, scale, said):
    other = small_captioner(scale=scale)
    other._encode = lambda images: captioner.encode_image(images)[:, :1]  # as an mlp and a linear mapper of one pair
    features = CaptionFeatures(other, None)
    task, steered = data.focus("numbers", features), fit(HardPrompt("5 9"), captioner, data, recipe=None).predictor
    for call in (
        lambda: core.fit(PromptTuning(2), captioner, task, progress=False),
        lambda: choice.choose_method(captioner, task, QUICK, progress=False),
        lambda: measure_captions(captioner, data, [steered.prompt], features=features),
        lambda: evaluate(steered, data, features=features),
    ):
        with pytest.raises(UserError, match=said):
            call()


class StopAfter(Callback):
    """Ends the process's training in the middle, as a kill would."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_epoch_begin(self, run, epoch):
        if epoch == self.n_epochs:
            raise KeyboardInterrupt


def test_a_resumed_training_ends_in_the_same_bytes(captioner, data, tmp_path):
    fit(PromptTuning(3), captioner, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(PromptTuning(3), captioner, data, tmp_path / "halves", callbacks=[StopAfter(2)])
    fit(PromptTuning(3), captioner, data, tmp_path / "halves", resume=True)
    one, other = ((tmp_path / name / "prompt.safetensors").read_bytes() for name in ("whole", "halves"))
    assert one == other


@pytest.mark.parametrize("method", [PromptTuning(3), PrefixTuning(2, reparametrise=True, hidden=8)], ids=str)
def test_the_same_run_gives_the_same_bytes_whatever_torch_drew_before(captioner, data, tmp_path, method):
    for number, name in ((5, "one"), (6, "again")):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        fit(method, captioner, data, tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
    one, again = ((tmp_path / name / "prompt.safetensors").read_bytes() for name in ("one", "again"))
    assert one == again


def test_captions_that_are_cut_are_counted_and_said(captioner, data, caplog):
    captioner.decoder.budget = 5
    result = fit(PromptTuning(2), captioner, data)
    assert any("8 of 16 captions were longer" in notice for notice in result.notices)
    assert "8 of 16 captions were longer" in caplog.text


def test_a_prompt_that_learned_nothing_of_other_images_is_said_to(captioner, data):
    poor = fit(PromptTuning(1), captioner, data, epochs=1, lr=1e-6)
    (notice,) = (notice for notice in poor.notices if "was not learned" in notice)
    assert re.match(
        r"numbers was not learned: of 2 other images, captions with this prompt are \d+ % like those that were "
        r"written, "
        r"captions of other images in the data \d+ %, and the best wording without a prompt reaches \d+ %\. "
        r"Try another --method, such as lora, give",
        notice,
    )
    low_rank = fit("lora", captioner, data, epochs=1, lr=1e-6)
    assert any("Try another --method, give more pairs" in notice for notice in low_rank.notices)


def test_a_method_that_the_decoder_cannot_take_is_not_advised(captioner, data):
    captioner.decoder = NotCausal(captioner.decoder)
    poor = fit(PromptTuning(1), captioner, data, epochs=1, lr=1e-6)
    assert any("Try another --method, give more pairs" in notice for notice in poor.notices)


def test_a_prompt_is_held_against_captions_of_other_images_and_the_best_wording(captioner, data, monkeypatch):
    """What is said is made up, so that the three likenesses are known."""
    task = data.focus("numbers", CaptionFeatures(captioner, None))
    predictor = task.predictor(PromptTuning(1), captioner, 1)
    right = [item.of("numbers")[0] for item in data.val]
    said = {"prompt": right, "wordings": ["39"] * len(right)}

    def caption_features(steered, features, *rest):
        own = steered.guidance.prompts and steered.guidance.prompts[0][0] is predictor.prompt
        return [Caption(text, 0.0, 0.0, 1, False) for text in said["prompt" if own else "wordings"]]

    monkeypatch.setattr(captioning.Captioner, "caption_features", caption_features)
    assert task._notices_on_others(predictor, 5) == []
    said["wordings"] = [f"{text} 4" for text in right]
    assert task._notices_on_others(predictor, 5) == []  # less like them than the prompt's
    said["prompt"] = [item.of("numbers")[0] for item in data.train[:2]]
    assert "numbers was not learned" in task._notices_on_others(predictor, 5)[0]
    said["wordings"] = right
    said["prompt"] = [f"{text} 4" for text in right]
    assert "the best wording without a prompt reaches 100 %" in task._notices_on_others(predictor, 5)[0]
    said |= {"prompt": right, "wordings": ["39"] * len(right)}
    trained_on_all = task.predictor(PromptTuning(1), captioner, 2)
    assert "numbers was not learned" in task._notices_on_others(trained_on_all, 5)[0]
    task.trial = captioning.Trial(predictor, data.val)  # what a prompt said that did not see the images counts
    assert task._notices_on_others(trained_on_all, 5) == []


def test_few_images_say_no_more_than_their_standard_error_lets_them():
    some, others = torch.tensor([1.0, 1.0, 0.4, 0.4, 0.4]), torch.full((5,), 0.7)
    assert is_no_less(some, others)  # 0.06 below, with a standard error of 0.15
    assert not is_no_less(some.repeat(20), others.repeat(20))
    assert is_no_less(torch.tensor([0.5]), torch.tensor([0.5]))
    assert not is_no_less(torch.tensor([0.4]), torch.tensor([0.5]))


def test_captions_that_are_cut_by_default_are_said_to_be(captioner, data):
    long = " ".join(str(2 + n % 30) for n in range(35))
    items = [replace(item, captions={"numbers": (long,)}) for item in data.items]
    result = fit(PromptTuning(2), captioner, replace(data, items=tuple(items)))
    assert "Captions of numbers have up to 36 tokens: write them with --max-tokens 36." in result.notices


def test_low_rank_terms_change_what_is_said_and_nothing_of_the_captioner(captioner, data, tmp_path):
    before, images = captioner.compute_fingerprint(), [item.image for item in data.test]
    result = fit(LoRA(rank=2), captioner, data, tmp_path / "run", epochs=30, lr=0.01)
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.8 * losses[0]
    assert captioner.compute_fingerprint() == before
    saved = load_focus(tmp_path / "run", captioner)
    assert {site.part for site in saved.sites} >= {
        "lm_head",
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }
    plain, steered = Captioner(captioner), Captioner(captioner, Guidance(((saved, 1.0),)))
    found = steered.caption(images)
    assert [one.text for one in found] == [one.text for one in result.predictor.caption(images)]
    assert [one.text for one in found] != [one.text for one in plain.caption(images)]
    # read token by token it is what it is in a training step, where many captions share a row
    features = captioner.encode_image(torch.stack([captioner.preprocess(read_image(image)) for image in images]))
    ids = [[(*captioner.tokenizer.encode(one.text), *([] if one.is_cut else [END]))] for one in found]
    log_probs = captioner.log_probs(captioner.open(features), saved.double().inserts(), ids)
    sums = [part.sum().item() for part in log_probs.split([len(some[0]) for some in ids])]
    assert sums == pytest.approx([one.log_prob for one in found], rel=1e-4)


def test_low_rank_terms_need_a_causal_decoder_and_a_language_model_keeps_its_head(captioner, data):
    captioner.decoder = NotCausal(captioner.decoder)
    with pytest.raises(UserError, match=r"small has no causal language model for its decoder, so it takes no low-rank"):
        fit(LoRA(rank=2), captioner, data)


class NotCausal:
    """A decoder that is no causal language model, but answers like one."""

    def __init__(self, decoder):
        self._decoder = decoder

    def __getattr__(self, name):
        return getattr(self._decoder, name)


def test_the_method_is_the_one_that_makes_held_out_captions_most_probable(captioner, data, monkeypatch):
    monkeypatch.setattr(choice, "CANDIDATES", {"prompt-tuning": PromptTuning(1), "lora": LoRA(rank=2)})
    features = CaptionFeatures(captioner, None)
    task = data.focus("numbers", features)
    chosen = choice.choose_method(captioner, task, QUICK, progress=False)
    held_out = (*data.val, *data.train[::5])  # two of the validation part are too few
    assert chosen.n_images == len(held_out)
    part = replace(data, items=tuple(item for item in data.train if item not in held_out))
    found = {}
    for name, method in choice.CANDIDATES.items():
        prompt = fit(method, captioner, part, features=features).predictor.prompt
        ids = [[(*captioner.tokenizer.encode(text), END) for text in item.of("numbers")] for item in held_out]
        seen = captioner.open(features.of([item.image for item in held_out]))
        found[name] = captioner.log_probs(seen, prompt.inserts(), ids).exp().mean().item()
    assert {name: chosen.probabilities[name] for name in found} == pytest.approx(found, rel=1e-5)
    best = max(found, key=found.get)
    assert next(iter(chosen.probabilities)) == best
    assert chosen.method is choice.CANDIDATES[best]
    assert chosen.task.data.test == task.data.test
    assert {item.image_id for item in chosen.task.items} == {item.image_id for item in (*data.train, *data.val)}
    assert [item.image_id for item in chosen.task.trial.items] == [
        item.image_id for item in data.items if item in held_out
    ]


def test_a_method_that_the_captioner_cannot_take_is_left_out_of_the_choice(captioner, data):
    captioner.decoder.kv_shape = None
    chosen = choice.choose_method(
        captioner, data.focus("numbers", CaptionFeatures(captioner, None)), QUICK, progress=False
    )
    assert "takes no keys and values" in chosen.refused["prefix-tuning"]
    assert set(chosen.probabilities) == {"prompt-tuning", "lora", "no prompt"}


def test_letters_that_the_captioner_cannot_write_are_refused(data):
    tiny = load_captioner("tiny", device="cpu")
    items = [replace(item, captions={"numbers": ("eine Gro\u00dfe Stra\u00dfe", "\u4e94")}) for item in data.items]
    task = replace(data, items=tuple(items)).focus("numbers")
    message = r" cannot write '\u4e94', as in the caption '\u4e94'\. Give captions in a language"
    with pytest.raises(UserError, match=f"tiny{message}"):  # it learned from English captions
        task.predictor(PromptTuning(2), tiny, 1)
    tiny.name = "another"
    task.predictor(PromptTuning(2), tiny, 1)  # its tokenizer has a token for every byte
    tiny.tokenizer = replace(
        tiny.tokenizer, decode=lambda ids, whole=tiny.tokenizer.decode: whole(ids).replace("\u4e94", "?")
    )
    with pytest.raises(UserError, match=f"another{message}"):
        task.predictor(PromptTuning(2), tiny, 1)


def test_one_caption_for_every_picture_is_said_to_be_a_collapse(captioner, data, monkeypatch):
    monkeypatch.setattr(captioning, "COLLAPSED", 1.1)
    result = fit(PromptTuning(2), captioner, data)
    assert any("it has collapsed" in notice for notice in result.notices)


def test_a_focus_without_captions_is_refused_and_nothing_is_written(captioner, data, tmp_path):
    with pytest.raises(UserError, match="there is no focus named 'feelings'"):
        fit(PromptTuning(2), captioner, data, tmp_path / "run", focus="feelings")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings", [{"augment": "coop"}, {"views": 3}])
def test_to_crop_and_flip_images_with_captions_is_refused(settings, captioner, data, tmp_path):
    with pytest.raises(
        UserError, match=r"but images with captions are learned from as they are\. Leave `(augment|views)`"
    ):
        core.fit(PromptTuning(2), captioner, data.focus("numbers"), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_written_over(captioner, data, tmp_path):
    fit(PromptTuning(2), captioner, data, tmp_path / "run")
    before = (tmp_path / "run" / "prompt.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds a finished run"):
        fit(PromptTuning(2), captioner, data, tmp_path / "run")
    assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == before


def test_keys_and_values_are_refused_where_the_decoder_takes_none(captioner, data):
    captioner.decoder.kv_shape = None
    with pytest.raises(UserError, match="small takes no keys and values of a prompt in its blocks"):
        fit(PrefixTuning(2), captioner, data)


def test_a_prompt_starts_from_the_commonest_tokens():
    captions = [[5, 9, 7], [9, 5], [9, END]]
    assert start_tokens(captions, 3, torch.device("cpu")).tolist() == [9, 5, 1]
    assert start_tokens([[4, 4, 6]], 5, torch.device("cpu")).tolist() == [4, 6, 4, 6, 4]


@pytest.mark.parametrize("make", [lambda: PromptTuning(0), lambda: PrefixTuning(0)])
def test_at_least_one_vector_is_learned(make):
    with pytest.raises(UserError, match="it must be a whole number from 1 to 1024"):
        make()


def test_captions_are_ordered_by_likeness_too_and_keep_all_scores():
    ranker = load_backbone("tiny", device="cpu")
    image = load_captions("openart-scenes").test[0]
    features = encode_images(ranker, [image.image])
    texts = sorted(
        [image.of("emotions")[0], "an angry face."],
        key=lambda text: clip_score(ranker, [text], features).mean,
    )
    likeness = clip_score(ranker, texts, features.expand(2, -1)).by_image
    captions = [Caption(texts[0], -1.0, -0.20, 5, False, others=(Caption(texts[1], -1.5, -0.201, 5, False),))]
    (found,) = rank(captions, features, ranker)
    assert found.text == texts[1]
    assert [found.clip_score, found.others[0].clip_score] == pytest.approx(likeness[::-1])
    assert found.score == pytest.approx(-0.201 + likeness[1])
    assert found.log_prob == -1.5


def test_a_mapper_is_learned_once_and_carries_prompts(tmp_path):
    pair = f"tiny + hf:{TINY / 'captioner'}"
    scenes = load_captions("openart-scenes")
    some = replace(scenes, items=scenes.train[:16])
    captioner = load_captioner(pair, device="cpu")
    before = {name: value.clone() for name, value in captioner.decoder.mapper.state_dict().items()}
    history = fit_mapper(captioner, some, tmp_path / "mapper", replace(MAPPER_RECIPE, epochs=3, batch_size=8))
    assert history[-1]["loss"] < history[0]["loss"]
    assert any(not torch.equal(before[name], value) for name, value in captioner.decoder.mapper.state_dict().items())
    again = load_captioner(str(tmp_path / "mapper"), device="cpu")
    for name, value in captioner.decoder.mapper.state_dict().items():
        assert torch.equal(again.decoder.mapper.state_dict()[name], value)
    result = fit(PromptTuning(2), again, some, tmp_path / "run", focus="emotions", epochs=1)
    assert focus_of(load_focus(tmp_path / "run", again)) == focus_of(result.predictor.prompt) == "emotions"
    with pytest.raises(UserError, match="a mapper is never written over"):
        fit_mapper(captioner, some, tmp_path / "mapper")


def test_the_mapper_of_a_captioner_that_ships_learns_on_in_a_copy_and_its_best_epoch_is_kept(tmp_path):
    tiny, scenes = load_captioner("tiny", device="cpu"), load_captions("openart-scenes")
    some = replace(scenes, items=(*scenes.train[:8], *scenes.val[:4]))
    before = {name: value.clone() for name, value in tiny.decoder.mapper.state_dict().items()}
    recipe = replace(MAPPER_RECIPE, epochs=3, batch_size=8, warmup_epochs=0)
    seen = []
    history = fit_mapper(tiny, some, tmp_path / "own", recipe, progress=lambda done, every: seen.append((done, every)))
    assert all(torch.equal(before[name], value) for name, value in tiny.decoder.mapper.state_dict().items())
    assert tiny.compute_fingerprint() == tiny.fingerprint
    assert not seen or seen[-1] == (12, 12)
    own = load_captioner(tmp_path / "own", device="cpu")
    assert any(not torch.equal(before[name], value) for name, value in own.decoder.mapper.state_dict().items())
    said = Captioner(own).caption([item.image for item in some.val])
    score = score_captions(
        {item.image_id: caption.text for item, caption in zip(some.val, said, strict=True)},
        {item.image_id: item.of(NEUTRAL) for item in some.val},
    )
    assert score.cider_d == pytest.approx(max(record["cider_d"] for record in history))


@pytest.mark.parametrize("n_val", [1, 2])
def test_a_mapper_learns_unwatched_where_one_image_is_held_out_and_is_frozen_whatever_happens(tmp_path, n_val):
    scenes = load_captions("openart-scenes")
    some = replace(scenes, items=(*scenes.train[:4], *scenes.val[:n_val]))
    captioner = load_captioner(f"tiny + hf:{TINY / 'captioner'}", device="cpu")
    recipe = replace(MAPPER_RECIPE, epochs=1, warmup_epochs=0)
    with pytest.raises(KeyboardInterrupt):
        fit_mapper(captioner, some, tmp_path / "stopped", recipe, callbacks=[StopAfter(0)])
    assert not any(weight.requires_grad for weight in captioner.decoder.mapper.parameters())
    (epoch,) = fit_mapper(captioner, some, tmp_path / "mapper", recipe)
    assert ("cider_d" in epoch) == (n_val > 1)


def test_a_mapper_is_trained_already_whatever_its_folder_is_called(tmp_path):
    learned = load_captioner(f"tiny + hf:{TINY / 'captioner'}", device="cpu")
    save_mapped(learned, tmp_path / "a+b")
    message = r"a\+b has no mapper to train: its own is trained already\. Use `backbone='ENCODER \+ LM'`, or"
    with pytest.raises(UserError, match=message):
        fit_mapper(load_captioner(tmp_path / "a+b", device="cpu"), "openart-scenes", tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["a+b"]


def test_a_captioner_without_a_mapper_has_none_to_train(captioner, data, tmp_path):
    with pytest.raises(UserError, match="small has no mapper to train"):
        fit_mapper(captioner, data, tmp_path / "mapper")
    assert not (tmp_path / "mapper").exists()


def test_arguments_of_another_kind_are_refused_before_anything_is_learned(data, tmp_path):
    captioner = load_captioner("tiny", device="cpu")
    for wrong in ({"name": None}, {"name": "numbers", "features": "x"}):
        with pytest.raises(UserError, match="but it must be"):
            data.focus(**wrong)
    for more in ({"data": data.focus("numbers")}, {"data": data, "recipe": {"epochs": 1}}):
        with pytest.raises(UserError, match="but it must be"):
            fit_mapper(captioner, out=tmp_path / "mapper", **more)
    with pytest.raises(UserError, match="no set of captions named"):
        fit_mapper(captioner, tmp_path / "gone.jsonl", tmp_path / "mapper")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_focus_in_words_is_saved_without_training(captioner, data, tmp_path):
    result = fit(HardPrompt("5 9"), captioner, data, tmp_path / "run", None)
    saved = load_focus(tmp_path / "run", captioner)
    assert result.history == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "prompt.json", "prompt.safetensors"}
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["method"] == {"name": "hard", "settings": {"words": "5 9"}}
    assert (config["kind"], config["data"]["focus"]) == ("captioning", "numbers")
    assert (focus_of(saved), saved.template.words) == ("numbers", "5 9")
    expected = captioner.decoder.embed(torch.tensor([5, 9])).float()
    assert torch.equal(vectors_of(saved.inserts())[LM_INPUT].values, expected)
    with pytest.raises(UserError, match="they must hold at least one word"):
        fit(HardPrompt(""), captioner, data)


def test_few_pictures_are_seen_more_often():
    recipe = resolved_recipe(PromptTuning(), ("small", "captioning"), {}, None)
    assert (recipe.lr, recipe.batch_size) == (0.1, 16)
    assert epochs_of(recipe, 320) == 8
    assert epochs_of(recipe, 16) == 160
    assert epochs_of(replace(recipe, epochs=3), 16) == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (PromptTuning(), {"n_soft": 8}),
        (PromptTuning(3), {"n_soft": 3}),
        (PrefixTuning(), {"n_prefix": 4, "reparametrise": False, "hidden": 256}),
        (PrefixTuning(2, True), {"n_prefix": 2, "reparametrise": True, "hidden": 256}),
    ],
    ids=str,
)
def test_what_a_method_leaves_open_suits_a_captioner(method, settings):
    assert asdict(settled(method, "tiny", "captioning")) == settings


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps_per_shot": 5}, "is 5, but data of captioning has no shots. Give `n_steps` or `epochs`."),
        ({"patience": 2}, "is 2, but captions have no validation accuracy to wait for. Leave `patience` out."),
    ],
    ids=["shots", "early stopping"],
)
def test_what_captions_have_nothing_to_count_by_is_refused(setting, message, captioner, data, tmp_path):
    with pytest.raises(UserError) as caught:
        fit(PromptTuning(2), captioner, data, tmp_path / "run", None, **setting)
    assert str(caught.value) == f"{next(iter(setting))} {message}"
    assert not (tmp_path / "run").exists()
