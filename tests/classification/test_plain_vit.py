"""VPT as its paper has it, on a vision transformer alone with a linear classifier, and what else such a tower carries.

It is held to a plain version of Jia et al. 2022, section 3, on timm's own blocks: tokens between class token and
patches, replaced in each deeper layer.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import mmprompt as mp
from mmprompt.classification.measure import measure
from mmprompt.classification.methods import VPT, Adapters, CLIPLoRA, LayerNormTuning, TwoStage
from mmprompt.classification.task import zero_shot
from mmprompt.cli.main import main
from mmprompt.core.heads import Linear
from mmprompt.core.method import Method
from mmprompt.data.splits import Dataset
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.dual_encoder.load import load_backbone
from tests import small_models
from tests.classification.side_by_side import TOLERANCE, DoubleTask, Recorder, assert_close, batches_of
from tests.reference import plain_methods

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 0.05, "progress": False}
N_EPOCHS, BATCH = 5, 4


def plain_vpt(model: Any, learned: list[Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Tokens of each prompted layer, then weight and bias of the classifier."""
    *tokens, weight, bias = learned
    x = model.patch_embed(images)
    x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1) + model.pos_embed
    for layer, block in enumerate(model.blocks):
        if layer < len(tokens):
            n_before = len(tokens[0]) if layer else 0
            own = tokens[layer].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1 + n_before :]], dim=1)
        x = block(x)
    features = model.norm(x)[:, 0]
    return {"cross_entropy": plain_methods.cross_entropy(features @ weight.T + bias, labels)}


@pytest.fixture(scope="module", params=[1, 2], ids=["shallow", "deep"])
def both(request: pytest.FixtureRequest, tiny_timm_folder: Path) -> tuple[Recorder, plain_methods.Learning]:
    backbone = load_backbone(str(tiny_timm_folder), device="cpu", dtype="float64")
    images = list(np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    task = DoubleTask("random", ["cat", "dog", "car", "bird"], images, [0, 1, 2, 3] * 2, augment="none")
    ours, method = Recorder(), VPT(n_visual=3, depth=request.param)
    mp.fit(method, backbone, task, callbacks=[ours], batch_size=BATCH, epochs=N_EPOCHS, progress=False)
    model = timm.create_model(f"local-dir:{tiny_timm_folder}", pretrained=True).double().eval()
    plain = plain_methods.Method(plain_vpt, 0.002)
    return ours, plain_methods.learn(plain, model, ours.start, batches_of(task, backbone, N_EPOCHS, BATCH), N_EPOCHS)


def test_the_loss_is_the_paper_s(both: tuple[Recorder, plain_methods.Learning]) -> None:
    ours, plain = both
    assert ours.terms["loss"] == pytest.approx(plain.terms[0]["cross_entropy"].item(), rel=TOLERANCE)


def test_the_gradient_of_the_first_step_is_the_paper_s(both: tuple[Recorder, plain_methods.Learning]) -> None:
    assert_close(both[0].gradients[0], both[1].gradients[0])


def test_ten_steps_lead_where_the_paper_s_do(both: tuple[Recorder, plain_methods.Learning]) -> None:
    ours, plain = both
    assert len(ours.places) == len(plain.places) == 10
    for one, expected in zip(ours.places, plain.places, strict=True):
        assert_close(one, expected, ours.start)


def test_features_are_the_library_s_own(tiny_timm_folder: Path, tiny_timm_backbone: DualEncoder) -> None:
    model = timm.create_model(f"local-dir:{tiny_timm_folder}", pretrained=True, num_classes=0).eval()
    images = tiny_timm_backbone.normalize(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(tiny_timm_backbone.encode_image(images), model(images))


def test_tokens_and_classifier_start_as_in_the_released_code(tiny_timm_backbone: DualEncoder) -> None:
    names = [f"class {number}" for number in range(50)]
    prompt = VPT(n_visual=40).build(tiny_timm_backbone, names).prompt
    tokens, weight, bias = prompt.parameters()
    bound = math.sqrt(6 / (3 * small_models.PATCH**2 + small_models.WIDTH))
    assert tokens.abs().max().item() == pytest.approx(bound, rel=0.02)
    assert tokens.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.05)
    assert not bias.any()


def test_the_classifier_is_learned_with_whatever_learns_in_the_tower(
    tiny_timm_backbone: DualEncoder, data: Dataset
) -> None:
    methods: list[Method] = [
        CLIPLoRA(lora_towers="vision"),
        Adapters(adapter_towers="vision"),
        LayerNormTuning(norm_towers="vision"),
    ]
    for method in methods:
        classifier = mp.fit(
            method, tiny_timm_backbone, data, n_steps=2, batch_size=4, lr=0.05, progress=False
        ).predictor
        head = classifier.prompt.head
        assert isinstance(head, Linear)
        assert head.bias.any()
        assert tiny_timm_backbone.compute_fingerprint() == tiny_timm_backbone.fingerprint


def test_a_convolutional_tower_takes_pixels_and_a_probe_but_no_tokens(tmp_path: Path, data: Dataset) -> None:
    folder = small_models.save_timm(tmp_path / "resnet", "test_resnet")
    backbone = load_backbone(f"timm:{folder}", device="cpu")
    for method, settings in (("padding-prompt", QUICK), ("linear-probe", {})):
        rows = mp.fit(method, backbone, data, **settings).predictor.predict_proba(data.test[0].path)
        assert rows.sum() == pytest.approx(1)
    with pytest.raises(UserError, match=r"\(ResNet\) has no image tokens .* Use `padding-prompt` or `linear-probe`"):
        VPT().build(backbone, ["cat", "dog"])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("coop", "has no text tower, but this needs one. Use vpt,"),
        ("zero-shot", "has no text tower, but this needs one. Use vpt,"),
        ("vpt+gda", "has no text tower, but this needs one. Use vpt,"),
        ("vpt+knowledge-guided", "has no text tower, but this needs one. Use vpt,"),
        ("clip-lora", "has no text tower. Use `lora_towers='vision'`"),
        ("two-stage", "has no text tower, but this needs one. Use vpt,"),
    ],
)
def test_what_reads_text_is_refused_before_anything_is_written(
    method: str, expected: str, tiny_timm_backbone: DualEncoder, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        mp.fit(method, tiny_timm_backbone, data, tmp_path / "run", **QUICK)
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["linear-probe", "auto"])
def test_a_class_without_images_has_no_text_to_stand_for_it(
    method: str, tiny_timm_backbone: DualEncoder, data: Dataset
) -> None:
    some = replace(data, train=tuple(item for item in data.train if item.label))
    with pytest.raises(
        UserError, match=r"2 of 3 classes .* leave out the other classes, or use a head that reads the text of a dual"
    ):
        mp.fit(method, tiny_timm_backbone, some)


def test_two_stages_need_the_text_to_start_from_even_in_the_image_tower(tiny_timm_backbone: DualEncoder) -> None:
    with pytest.raises(UserError, match="has no text tower"):
        TwoStage(norm_towers="vision").build(tiny_timm_backbone, ["cat", "dog"])


def test_there_is_no_zero_shot_to_compare_with(tiny_timm_backbone: DualEncoder, data: Dataset) -> None:
    result = mp.fit("nearest-class-mean", tiny_timm_backbone, data)
    assert result.notices == ()
    assert {name for name in measure(result.predictor, data) if "zero" in name} == set()
    with pytest.raises(UserError, match="has no text tower"):
        zero_shot(tiny_timm_backbone, data.class_names)


def test_features_of_any_size_have_the_same_nearest_mean(tiny_timm_backbone: DualEncoder, data: Dataset) -> None:
    head = mp.fit("nearest-class-mean", tiny_timm_backbone, data).predictor.prompt.head
    features = torch.randn(3, tiny_timm_backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(7 * features, features), head(features, features))


def test_the_verbs_train_measure_report_and_predict(
    tiny_timm_folder: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = ["train", "--backbone", f"timm:{tiny_timm_folder}", "--method", "vpt", "--data", str(picture_folder)]
    assert main([*words, "--shots", "2", "--epochs", "1", "--device", "cpu", "--out", run]) == 0
    assert "without zero-shot, for want of a text tower" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "The model has no text tower, so there is no zero-shot to compare with." in page
    assert "Each class beside zero-shot" not in page
    assert main(["eval", run, "--device", "cpu"]) == 0
    assert main(["inspect", run]) == 0
    image = str(next(picture_folder.rglob("*.png")))
    assert main(["predict", run, image, "--device", "cpu"]) == 0
    assert "linear" in capsys.readouterr().out
    assert main(["predict", run, image, "--class-names", "a fish,a bird"]) == 2
