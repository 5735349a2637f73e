"""Averages of prompts, points between two, and what tells two apart."""

from __future__ import annotations

import json

import pytest
import torch

import mmprompt as mp
from mmprompt.classification.methods import METHODS
from mmprompt.cli.main import main
from mmprompt.core.combine import average_prompts, diff_prompts

NAMES = ["cat", "dog"]


def saved(folder, backbone, method="coop", seed=1, names=NAMES, **settings):
    """The prompt file of an untrained classifier whose every number was moved."""
    settings = {"n_ctx": 2} | settings if method == "coop" else settings
    classifier = METHODS[method](**settings).build(backbone, names)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.prompt.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
    mp.save(classifier, folder, {"seed": seed})
    return folder


@pytest.fixture
def two(tmp_path, tiny_clip_backbone):
    return [saved(tmp_path / f"seed{seed}", tiny_clip_backbone, seed=seed) for seed in (1, 2)]


def vectors(predictor):
    return next(iter(predictor.prompt.inserts("text").values())).values


def test_an_average_holds_the_mean_of_the_vectors_and_features_of_its_own(two, tiny_clip_backbone, tmp_path, capsys):
    words = [str(folder) for folder in two]
    assert main(["prompt", "average", *words, "--out", str(tmp_path / "mean")]) == 0
    one, other, mean = (mp.load(folder, tiny_clip_backbone) for folder in (*two, tmp_path / "mean"))
    torch.testing.assert_close(vectors(mean), (vectors(one) + vectors(other)) / 2)
    fresh = mean.with_class_names(NAMES)  # encodes its class names anew
    torch.testing.assert_close(mean.class_features(), fresh.class_features())
    header = json.loads((tmp_path / "mean" / "prompt.json").read_text())
    assert header["training"]["method"]["settings"] == {"shares": [0.5, 0.5]}
    assert len(header["training"]["averaged"]) == 2


@pytest.mark.parametrize(("share", "end"), [("0", 0), ("1", 1)])
def test_the_ends_of_an_interpolation_are_the_prompts(share, end, two, tiny_clip_backbone, tmp_path):
    words = [str(folder) for folder in two]
    assert main(["prompt", "interpolate", *words, "--share", share, "--out", str(tmp_path / "between")]) == 0
    between = mp.load(tmp_path / "between", tiny_clip_backbone)
    assert torch.equal(vectors(between), vectors(mp.load(two[end], tiny_clip_backbone)))


def test_what_tells_two_prompts_apart_is_shown_without_a_model(two, capsys):
    assert main(["prompt", "diff", *map(str, two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["facts"] == {"seed": [1, 2]}
    (learned,) = found["learned"]
    assert (learned["name"], learned["shape"]) == ("text.input", [2, 32])
    assert 0 < learned["distance"]
    assert {one["name"] for one in found["classes"]} == set(NAMES)


def test_prompts_of_two_shapes_differ_in_them(two, tiny_clip_backbone, tmp_path, capsys):
    longer = saved(tmp_path / "longer", tiny_clip_backbone, n_ctx=3)
    assert main(["prompt", "diff", str(two[0]), str(longer)]) == 0
    assert "2 x 32 and 3 x 32" in capsys.readouterr().out


def test_a_prompt_differs_in_nothing_from_itself(two, capsys):
    found = diff_prompts(two[0], two[0])
    assert found["facts"] == {}
    assert found["learned"][0]["distance"] == 0
    assert found["learned"][0]["cosine"] == pytest.approx(1)


REFUSED = {
    "another model": (lambda f, b: saved(f, b["hf"]), "was learned on"),
    "other shapes": (lambda f, b: saved(f, b["own"], n_ctx=3), "has other"),
    "other sites": (lambda f, b: saved(f, b["own"], "deep-text"), "has other"),
    "other names": (lambda f, b: saved(f, b["own"], names=["cat", "fish"]), "has other class names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_prompts_of_another_form_are_not_averaged(
    case, two, tiny_clip_backbone, tiny_hf_clip_backbone, tmp_path, capsys
):
    make, said = REFUSED[case]
    other = make(tmp_path / "other", {"own": tiny_clip_backbone, "hf": tiny_hf_clip_backbone})
    assert main(["prompt", "average", str(two[0]), str(other), "--out", str(tmp_path / "new")]) == 2
    refusal = capsys.readouterr().err
    assert said in refusal
    assert refusal.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_products_are_not_averaged(tiny_clip_backbone, tmp_path):
    two = [saved(tmp_path / f"seed{seed}", tiny_clip_backbone, "clip-lora", seed) for seed in (1, 2)]
    with pytest.raises(mp.UserError, match="holds low-rank, of which an average of the numbers is no average"):
        average_prompts(two, model=tiny_clip_backbone)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--shares", "0.5,0.6"], "shares is [0.5, 0.6]"),
        (["--shares", "1"], "there are 2 prompts"),
        (["--shares", "half,half"], "numbers with commas between them"),
    ],
)
def test_shares_that_are_none_are_refused(more, said, two, tmp_path, capsys):
    assert main(["prompt", "average", *map(str, two), *more, "--out", str(tmp_path / "new")]) == 2
    assert said in capsys.readouterr().err
