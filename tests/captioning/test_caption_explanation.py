"""What a captioner's prompt is said to have learned, on a small captioner and against plain definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mmprompt as mp
from mmprompt.captioning import choice
from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.explanation import evidence
from mmprompt.captioning.predictor import CaptionFeatures, CaptionTemplate
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.models.sites import Site, without_vector
from mmprompt.training.recipe import Recipe
from tests.captioner_models import save_blip
from tests.small_captioners import small_captioner, small_captions


@pytest.fixture(scope="module")
def captioner() -> FrozenCaptioner:
    return small_captioner()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return small_captions(tmp_path_factory.mktemp("captions"), n=16)


@pytest.fixture(scope="module")
def told(captioner: FrozenCaptioner, data: CaptionData) -> mp.Explanation:
    result = mp.fit(mp.PromptTuning(3), captioner, data.focus("numbers"), epochs=2, progress=False)
    return mp.explain(result.predictor, data, to_words=True)


def vectors(captioner: FrozenCaptioner, n: int) -> torch.Tensor:
    return torch.randn(n, captioner.decoder.width, generator=torch.Generator().manual_seed(4))


def prompt_of(values: torch.Tensor) -> Prompt:
    return Prompt(CaptionTemplate("numbers"), Learned(LM_INPUT, values)).double()


def test_a_captioner_is_explained_section_by_section(told: mp.Explanation) -> None:
    names = [section.name for section in told.sections]
    assert names == [name for name in ("words", "worth", "said", "maps", "in_words") if name in names]
    assert {"words", "worth", "said", "in_words"} <= set(names)
    assert len(told.tables["words"]) == len(told.tables["worth"]) == 3
    losses = {row[""]: row["nats a token"] for row in told.tables["in_words"]}
    assert (
        f"costs {losses['soft prompt']:.2f} nats with the prompt and {losses['no prompt']:.2f} without" in told.headline
    )
    assert "accuracy falls by" not in told.tables["worth"][0]


def test_words_that_come_are_those_said_with_the_prompt_alone(told: mp.Explanation) -> None:
    for row in told.tables["said"]:
        assert row["more often"] == pytest.approx(row["with the prompt"] - row["without"])
        assert row["more often"] != 0


def test_a_page_of_captions_is_saved(told: mp.Explanation, tmp_path: Path) -> None:
    text = told.save(tmp_path).read_text()
    assert all(section.title in text for section in told.sections)


def test_without_a_vector_are_all_others_and_keys_and_values_stay(captioner: FrozenCaptioner) -> None:
    values = vectors(captioner, 3)
    inserts = prompt_of(values).inserts() | Prompt(CaptionTemplate(""), Learned(Site("lm.kv"), values)).inserts()
    found = without_vector(inserts, "lm", 1)
    assert torch.equal(found[LM_INPUT].tensors[0].float(), values[[0, 2]])
    assert torch.equal(found[Site("lm.kv")].tensors[0], values)
    assert without_vector(without_vector(without_vector(inserts, "lm", 0), "lm", 0), "lm", 0).keys() == {Site("lm.kv")}


def test_evidence_is_the_gradient_times_the_input_by_small_steps(captioner: FrozenCaptioner, data: CaptionData) -> None:
    features = CaptionFeatures(captioner, store=None).of([item.image for item in data.test[:2]])
    caption = (5, 6, captioner.decoder.end_id)
    inserts = prompt_of(vectors(captioner, 2)).inserts()

    def log_prob(image: torch.Tensor) -> float:
        ids = torch.tensor([caption])
        with torch.no_grad():
            table = captioner.logits(captioner.open(image), inserts, ids).log_softmax(-1)
        return table.gather(2, ids[..., None]).sum().item()

    found = evidence(captioner, features, inserts, [caption, caption])
    image, step = features[:1].double(), 1e-3  # the decoder's norms compute in float32
    for token in range(image.shape[1]):
        total = 0.0
        for place in range(image.shape[2]):
            moved = torch.zeros_like(image)
            moved[0, token, place] = step
            slope = (log_prob(image + moved) - log_prob(image - moved)) / (2 * step)
            total += slope * image[0, token, place].item()
        assert found[0, token].item() == pytest.approx(abs(total), rel=0.03, abs=1e-3)


def test_captions_that_do_not_fit_are_cut(data: CaptionData, tmp_path: Path) -> None:
    captioner = mp.load_captioner(f"hf:{save_blip(tmp_path / 'blip')}", device="cpu")
    long = replace(data.test[0], captions={"numbers": ("a dog " * 30,)})
    one = mp.Captioner(captioner, mp.captioning.Guidance(((prompt_of(vectors(captioner, 2)).float(), 1.0),)))
    told = mp.explain(one, replace(data, items=(*data.train[:4], long)), to_words=True)
    assert {"maps", "in_words"} <= told.tables.keys()


def test_images_that_were_learned_from_are_not_held_out(
    captioner: FrozenCaptioner, data: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "CANDIDATES", {"prompt-tuning": mp.PromptTuning(1)})
    chosen = choice.choose_method(captioner, data.focus("numbers"), Recipe(epochs=1), progress=False)
    mp.fit(chosen.method, captioner, chosen.task, tmp_path / "run", epochs=1, progress=False)
    with pytest.raises(UserError, match=r"this run learned from the val part too, .*\. Use `split='test'`\."):
        mp.explain(tmp_path / "run", data, captioner, split="val")
    mp.explain(tmp_path / "run", data, captioner)
    mp.fit(chosen.method, captioner, data.focus("numbers"), tmp_path / "train alone", epochs=1, progress=False)
    mp.explain(tmp_path / "train alone", data, captioner, split="val")


def test_captions_of_another_set_are_refused(
    captioner: FrozenCaptioner, told: mp.Explanation, data: CaptionData
) -> None:
    prompt = Prompt(CaptionTemplate("moods"), Learned(LM_INPUT, vectors(captioner, 2))).double()
    other = mp.Captioner(captioner, mp.captioning.Guidance(((prompt, 1.0),)))
    with pytest.raises(UserError, match="no test images with captions of moods"):
        mp.explain(other, data)
