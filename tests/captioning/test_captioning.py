"""Learning a focus: the loss of the papers, a frozen captioner, notices, resume, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from mmprompt.captioning import task as captioning
from mmprompt.captioning.cli.write import rank
from mmprompt.captioning.data import NEUTRAL, load_captions
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.methods import MAPPER_RECIPE, HardPrompt, PrefixTuning, PromptTuning
from mmprompt.captioning.metrics.caption_metrics import clip_score, score_captions
from mmprompt.captioning.predictor import Caption, Captioner, CaptionFeatures, CaptionTemplate, focus_of, load_focus
from mmprompt.captioning.readers.captioner import LM_INPUT
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.captioning.task import (
    CaptionProblem,
    encode_captions,
    epochs_of,
    fit_mapper,
    notices_of,
    start_tokens,
    tokenize_captions,
)
from mmprompt.core import fit as core
from mmprompt.core.learned import Learned, Prompt
from mmprompt.core.method import resolved_recipe, settled
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import TINY, load_backbone
from mmprompt.models.image_features import encode_pictures
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
    assert encoder.n_seen == len(data.train)


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


def test_a_prompt_that_does_not_steer_is_said_to(captioner, data):
    features = CaptionFeatures(captioner, None).of([item.image for item in data.train])
    own = [
        [caption.text] for caption in Captioner(captioner, decoding=Decoding(max_tokens=6)).caption_features(features)
    ]
    captions = encode_captions(
        captioner, tokenize_captions(captioner, own), 20
    )  # what it says anyway, which a prompt can only make less likely
    values = captioner.decoder.embed(torch.tensor([5, 5])).float()
    prompt = Prompt(CaptionTemplate("numbers"), Learned(LM_INPUT, values))
    problem = CaptionProblem(captioner, prompt, lambda: vectors_of(prompt.inserts()), features, captions)
    notices = notices_of(problem, prompt, features)
    assert any("can hardly be steered" in notice and "Try prefix-tuning." in notice for notice in notices)


def test_one_caption_for_every_picture_is_said_to_be_a_collapse(captioner, data, monkeypatch):
    monkeypatch.setattr(captioning, "COLLAPSED", 1.1)
    result = fit(PromptTuning(2), captioner, data)
    assert any("it has collapsed" in notice for notice in result.notices)


def test_a_focus_without_captions_is_refused_and_nothing_is_written(captioner, data, tmp_path):
    with pytest.raises(UserError, match="there is no focus named 'feelings'"):
        fit(PromptTuning(2), captioner, data, tmp_path / "run", focus="feelings")
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
    features = encode_pictures(ranker, [image.image])
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


def test_a_captioner_without_a_mapper_has_none_to_train(captioner, data, tmp_path):
    with pytest.raises(UserError, match="small has no mapper to train"):
        fit_mapper(captioner, data, tmp_path / "mapper")
    assert not (tmp_path / "mapper").exists()


def test_a_focus_in_words_is_saved_without_training(captioner, data, tmp_path):
    result = fit(HardPrompt("5 9"), captioner, data, tmp_path / "run")
    saved = load_focus(tmp_path / "run", captioner)
    assert result.history == []
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "prompt.json", "prompt.safetensors"}
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["method"] == {"name": "hard", "settings": {"words": "5 9"}}
    assert (config["kind"], config["data"]["focus"]) == ("captioning", "numbers")
    assert saved.template == CaptionTemplate("numbers", "5 9")
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


def test_captions_have_no_shots_to_count_steps_by(captioner, data, tmp_path):
    message = r"^steps_per_shot is 5, but data of captioning has no shots\. Give `n_steps` or `epochs`\.$"
    with pytest.raises(UserError, match=message):
        fit(PromptTuning(2), captioner, data, tmp_path / "run", None, steps_per_shot=5)
    assert not (tmp_path / "run").exists()
