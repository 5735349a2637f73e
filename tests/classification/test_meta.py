"""A start of context vectors that several data sets teach, and prompts that begin at a saved one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmprompt as mp
from mmprompt.classification.meta import MetaResult, meta_init
from mmprompt.classification.methods import (
    DPSGD,
    GDA,
    TPT,
    CoCoOp,
    CoOp,
    GaussianAverage,
    KgCoOp,
    KnowledgeGuided,
    ProGrad,
    TipAdapterF,
)
from mmprompt.core.fit import fit
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.files import read_json
from mmprompt.models.dual_encoder.interface import DualEncoder

RECIPE = mp.Recipe(lr=0.5, batch_size=4)


@pytest.fixture
def datas(data: Dataset) -> tuple[Dataset, Dataset]:
    """The colours, and two of them by other names."""
    two = tuple(item for item in data.train if item.label < 2)
    return data, replace(data, name="two", class_names=("sky", "leaf"), train=two, test=())


@pytest.fixture
def learn(datas: tuple[Dataset, Dataset], tiny_clip_backbone: DualEncoder) -> Any:
    def learned(**more: Any) -> MetaResult:
        settings: dict[str, Any] = {"method": CoOp(2), "recipe": RECIPE, "n_rounds": 4, "n_inner": 2} | more
        return meta_init(settings.pop("datas", datas), tiny_clip_backbone, **settings)

    return learned


def vectors_of(classifier: mp.Classifier) -> Tensor:
    return classifier.prompt.sources[0].values.detach()  # type: ignore[return-value]


def started(method: CoOp, backbone: DualEncoder) -> Tensor:
    return vectors_of(method.build(backbone, ["cat", "dog"]))


def test_every_data_set_comes_equally_often_and_teaches(learn: Any, tiny_clip_backbone: DualEncoder) -> None:
    result = learn()
    assert sorted(record["task"] for record in result.history) == ["colours", "colours", "two", "two"]
    assert result.predictor.class_names == ("blue house", "green tree", "red car", "sky", "leaf")
    assert not vectors_of(result.predictor).equal(started(CoOp(2), tiny_clip_backbone))
    assert not result.predictor.prompt.sources[0].values.requires_grad


def test_one_round_at_full_rate_is_a_training_of_one_data_set(
    learn: Any, datas: tuple[Dataset, Dataset], tiny_clip_backbone: DualEncoder
) -> None:
    half, whole = (vectors_of(learn(n_rounds=1, rate=rate).predictor) for rate in (0.5, 1.0))
    start = started(CoOp(2), tiny_clip_backbone)
    torch.testing.assert_close(half - start, (whole - start) / 2)


def test_the_same_seed_gives_the_same_start(learn: Any) -> None:
    assert vectors_of(learn(seed=2).predictor).equal(vectors_of(learn(seed=2).predictor))
    assert not vectors_of(learn(seed=2).predictor).equal(vectors_of(learn(seed=3).predictor))


def test_prompts_begin_at_the_saved_start(learn: Any, tmp_path: Path, tiny_clip_backbone: DualEncoder) -> None:
    result = learn(out=tmp_path / "start")
    for kind in (CoOp, KgCoOp, ProGrad):
        assert started(kind(ctx_init=str(tmp_path / "start")), tiny_clip_backbone).equal(vectors_of(result.predictor))
    conditioned = CoCoOp(ctx_init=str(tmp_path / "start")).build(tiny_clip_backbone, ["cat", "dog"])
    assert conditioned.prompt.sources[0].context.equal(vectors_of(result.predictor))  # type: ignore[operator]
    meta = read_json(tmp_path / "start" / "prompt.json")["training"]["meta"]
    assert (meta["n_rounds"], meta["n_inner"], set(meta["tasks"])) == (4, 2, {"colours", "two"})


def test_a_prompt_begins_at_any_that_was_trained(
    tmp_path: Path, data: Dataset, tiny_clip_backbone: DualEncoder
) -> None:
    run = str(tmp_path / "run")
    trained = fit(CoOp(2), tiny_clip_backbone, data, run, epochs=1, progress=False).predictor
    assert started(CoOp(ctx_init=run), tiny_clip_backbone).equal(vectors_of(trained))
    each = CoOp(ctx_init=run, class_specific=True).build(tiny_clip_backbone, ["cat", "dog"])
    assert vectors_of(each).equal(vectors_of(trained).expand(2, -1, -1))
    with pytest.raises(UserError, match=r"^n_ctx is 3, but the prompt in .* has 2 context vectors\. Use `n_ctx=2`"):
        started(CoOp(3, run), tiny_clip_backbone)


def test_a_prompt_that_is_no_start_is_refused(
    tmp_path: Path, data: Dataset, tiny_clip_backbone: DualEncoder, tiny_hf_clip_backbone: DualEncoder
) -> None:
    with pytest.raises(UserError, match=r"is not there\. Give a folder"):
        started(CoOp(ctx_init=str(tmp_path / "none")), tiny_clip_backbone)
    for place, method in enumerate((CoOp(2, class_specific=True), CoCoOp(2, None), mp.VPT(1))):
        fit(method, tiny_clip_backbone, data, tmp_path / str(place), epochs=1, progress=False)
        with pytest.raises(UserError, match="holds no context vectors that all classes share"):
            started(CoOp(ctx_init=str(tmp_path / str(place))), tiny_clip_backbone)
    with pytest.raises(UserError, match="this prompt was learned on"):
        started(CoOp(ctx_init=str(tmp_path / "0")), tiny_hf_clip_backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_rounds": 0}, "n_rounds is 0"),
        ({"n_inner": 0}, "n_inner is 0"),
        ({"rate": 1.5}, r"rate is 1\.5"),
        ({"method": CoOp(2, class_specific=True)}, "context vectors that all classes share"),
        ({"method": CoCoOp(2, None)}, "context vectors that all classes share"),
        ({"method": CoOp(2) + GDA()}, r"^GDA does more than .* Leave it out\.$"),
        ({"method": CoOp(2) + TPT()}, r"^TPT does more than"),
        ({"method": CoOp(2) + TipAdapterF()}, r"^TipAdapterF does more than"),
        ({"method": CoOp(2, losses=[GaussianAverage(1.0)])}, r"^GaussianAverage does more than"),
        ({"method": CoOp(2, losses=[DPSGD()])}, r"^DPSGD does more than"),
        ({"method": CoOp(2) + KnowledgeGuided() + DPSGD()}, r"^KnowledgeGuided looks at images"),
        ({"method": CoOp(2) + mp.PromptTuning(2)}, r"^method is PromptTuning, but it is for captioning and language\."),
        ({"method": "coop"}, r"^method is 'coop', but it must be a CoOp or a Combination\."),
        ({"recipe": mp.Recipe(epochs=7)}, r"^epochs is 7, but .* Leave `epochs` out\.$"),
        ({"recipe": mp.Recipe(patience=1)}, r"^patience is 1, but"),
        ({"recipe": mp.Recipe(augment="coop")}, r"^augment is coop, but"),
        ({"recipe": mp.Recipe(views=3)}, r"^views is 3, but"),
        ({"recipe": mp.Recipe(restart_after=0.5)}, r"^restart_after is 0\.5, but"),
        ({"recipe": {"lr": 1.0}}, r"^recipe is of type dict, but it must be a Recipe\."),
        ({"datas": 5}, r"^datas is 5, but it must be a list, each a Dataset\."),
        ({"seed": "x"}, r"^seed is 'x', but it must be a whole number\."),
        ({"features": 5}, r"^features is 5, but it must be an ImageFeatures\."),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    settings: dict[str, Any], message: str, learn: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        learn(out=tmp_path / "start", **settings)
    assert not (tmp_path / "start").exists()


def test_loss_terms_of_what_is_joined_teach_too(learn: Any) -> None:
    plain, summed, given = (
        learn(method=method).predictor
        for method in (CoOp(2), CoOp(2) + KnowledgeGuided(), CoOp(2, losses=[KnowledgeGuided()]))
    )
    assert vectors_of(summed).equal(vectors_of(given))
    assert not vectors_of(summed).equal(vectors_of(plain))


def test_one_data_set_or_one_without_training_images_is_refused(learn: Any, datas: tuple[Dataset, Dataset]) -> None:
    with pytest.raises(UserError, match="there are 1 tasks"):
        learn(datas=datas[:1])
    with pytest.raises(UserError, match="two has no training images"):
        learn(datas=(datas[0], replace(datas[1], train=())))


def test_a_finished_start_is_not_overwritten(learn: Any, tmp_path: Path) -> None:
    learn(out=tmp_path / "start")
    with pytest.raises(UserError, match="already holds a finished run"):
        learn(out=tmp_path / "start")
