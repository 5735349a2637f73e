import inspect
import json
import re
import typing

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.classification.methods import TPT, VPT, CLIPLoRA, CoCoOp, CoOp, MaPLe, TipAdapter, make_method
from mmprompt.classification.predictor import CLASSIFIERS, Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.file import Predictor, load, save
from mmprompt.core.header import HEADER, TENSORS, header_hash, read_header
from mmprompt.core.heads import HEADS, Cache
from mmprompt.core.learned import Prompt
from mmprompt.core.sources import SOURCES, Conditioned, LowRankTerms
from mmprompt.errors import UserError
from mmprompt.files import sha256_bytes, tensor_bytes
from tests import small_models

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def saved(tiny_clip_backbone, tmp_path):
    save(CoOp(n_ctx=4).build(tiny_clip_backbone, NAMES), tmp_path / "prompt", {"seed": 1})
    return tmp_path / "prompt"


def edit_header(folder, is_sealed=False, **changes):
    """Change the header; sealed with a fresh hash as an attacker or another program would."""
    header = json.loads((folder / HEADER).read_text())
    header.pop("header_sha256")
    header |= changes
    seal = header_hash(header) if is_sealed else "0" * 64
    (folder / HEADER).write_text(json.dumps(header | {"header_sha256": seal}))


@pytest.mark.parametrize("name", ["coop", "vpt", "coop+vpt"])
def test_what_is_loaded_predicts_what_was_saved(name, tiny_clip_backbone, tmp_path):
    classifier = make_method(name, {"n_ctx": 4} if "coop" in name else {}).build(tiny_clip_backbone, NAMES)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    save(classifier, tmp_path)
    loaded = load(tmp_path, tiny_clip_backbone)
    np.testing.assert_array_equal(loaded.predict_proba(picture), classifier.predict_proba(picture))
    assert loaded.class_names == tuple(NAMES)


def test_backbone_is_loaded_by_the_name_in_the_file(saved, tiny_clip_backbone):
    assert load(saved).backbone.fingerprint == tiny_clip_backbone.fingerprint


def test_predicting_after_loading_encodes_no_text(saved, tiny_clip_backbone):
    count = []
    hook = tiny_clip_backbone.model.ln_final.register_forward_hook(lambda *_: count.append(1))
    load(saved, tiny_clip_backbone).predict(np.zeros((32, 32, 3), dtype=np.uint8))
    hook.remove()
    assert not count


def test_a_loaded_prompt_takes_other_class_names(saved, tiny_clip_backbone):
    loaded = load(saved, tiny_clip_backbone).with_class_names(["fish", "car"])
    fresh = CoOp(n_ctx=4).build(tiny_clip_backbone, ["fish", "car"])
    torch.testing.assert_close(loaded.class_features(), fresh.class_features())


def test_a_classifier_is_a_predictor_for_python_312_too(tiny_clip_backbone):
    """There isinstance looks members up statically, which finds no sub-module of a torch module."""
    members = typing._get_protocol_attrs(Predictor)
    assert members
    classifier = CoOp(n_ctx=2).build(tiny_clip_backbone, ["cat", "dog"])
    assert [name for name in members if inspect.getattr_static(classifier, name, None) is None] == []


def test_file_is_kilobytes(saved):
    assert sum(path.stat().st_size for path in saved.iterdir()) < 4000


def test_training_facts_are_in_the_header(saved):
    assert read_header(saved)["training"] == {"seed": 1}


def test_folder_without_a_prompt_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no prompt\.json"):
        load(tmp_path)


def test_edited_header_is_refused(saved, tiny_clip_backbone):
    edit_header(saved, class_names=["dog", "cat", "bird"])
    with pytest.raises(UserError, match="was edited after it was saved"):
        load(saved, tiny_clip_backbone)


def test_edited_vectors_are_refused(saved, tiny_clip_backbone):
    path = saved / TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="was changed after it was saved"):
        load(saved, tiny_clip_backbone)


def test_nan_is_refused(saved, tiny_clip_backbone):
    values = torch.full((4, tiny_clip_backbone.text_width), float("nan"))
    data = tensor_bytes({"text.input": values, "class_features": torch.zeros(3, tiny_clip_backbone.embed_dim)})
    (saved / TENSORS).write_bytes(data)
    edit_header(saved, is_sealed=True, tensors_sha256=sha256_bytes(data))
    with pytest.raises(UserError, match=r"NaN or infinity in 'text\.input'"):
        load(saved, tiny_clip_backbone)


def test_numbers_of_eight_bits_are_refused(saved, tiny_clip_backbone):
    tensors = {"text.input": torch.zeros(4, 32, dtype=torch.float8_e4m3fn)}
    (saved / TENSORS).write_bytes(tensor_bytes(tensors))
    digest = sha256_bytes((saved / TENSORS).read_bytes())
    edit_header(saved, is_sealed=True, tensors_sha256=digest)
    with pytest.raises(UserError, match=r"holds 'text.input' as float8_e4m3fn"):
        load(saved, tiny_clip_backbone)


def test_a_sealed_file_may_have_any_size(saved, tiny_clip_backbone, monkeypatch):
    monkeypatch.setattr("mmprompt.files.MAX_TENSOR_BYTES", 8)
    assert load(saved, tiny_clip_backbone).class_names == tuple(NAMES)


def test_newer_format_is_refused(saved, tiny_clip_backbone):
    edit_header(saved, is_sealed=True, format=99)
    with pytest.raises(UserError, match=r"has format 99, .* reads format 2. Upgrade mmprompt"):
        load(saved, tiny_clip_backbone)


def test_the_older_format_is_refused(saved, tiny_clip_backbone):
    edit_header(saved, is_sealed=True, format=1)
    with pytest.raises(UserError, match=r"has format 1, .* reads format 2\. It was never released: train the prompt"):
        load(saved, tiny_clip_backbone)


def test_another_backbone_is_refused(saved, tiny_hf_clip_backbone):
    with pytest.raises(UserError, match="this prompt was learned on"):
        load(saved, tiny_hf_clip_backbone)


def test_what_is_no_model_is_refused(saved):
    with pytest.raises(UserError, match="model is of type int, but a frozen model or the name of one was expected"):
        load(saved, 5)


def test_truncated_header_is_refused(saved, tiny_clip_backbone):
    path = saved / HEADER
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not valid JSON"):
        load(saved, tiny_clip_backbone)


def test_saving_where_nothing_can_be_written_is_refused(tiny_clip_backbone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        save(VPT().build(tiny_clip_backbone, NAMES), tmp_path / "file" / "prompt")


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"loss": float("nan")}, "Out of range float values"),
        ({"loss": object()}, "Object of type object"),
        ({("loss", 1): 0.5}, "keys must be str"),
        ({"name": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_facts_that_no_json_holds_are_refused_before_anything_is_replaced(training, reason, saved, tiny_clip_backbone):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(UserError, match=rf"^training is not JSON-ready \(.*{reason}.*\)\. Keep to text, "):
        save(CoOp(n_ctx=2).build(tiny_clip_backbone, NAMES), saved, training)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def test_facts_are_kept_as_json_gives_them_back(tiny_clip_backbone, tmp_path):
    save(CoOp(n_ctx=2).build(tiny_clip_backbone, NAMES), tmp_path, {"epochs": {10: (1, 2), 9: None, "all": True}})
    assert read_header(tmp_path)["training"]["epochs"] == {"10": [1, 2], "9": None, "all": True}


def test_a_tilde_is_the_home_folder(tiny_clip_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save(CoOp(n_ctx=2).build(tiny_clip_backbone, NAMES), "~/prompt")
    assert [path.name for path in tmp_path.iterdir()] == ["prompt"]
    assert load("~/prompt", tiny_clip_backbone).class_names == tuple(NAMES)
    learned = CoOp(ctx_init="~/prompt").build(tiny_clip_backbone, NAMES).prompt
    assert torch.equal(learned.sources[0].vectors, load("~/prompt", tiny_clip_backbone).prompt.sources[0].vectors)


PARTS = {
    "a source": (CoCoOp(n_ctx=2, ctx_init=None), SOURCES, "conditioned", "source of kind 'conditioned'"),
    "low-rank terms": (CLIPLoRA(), SOURCES, "low-rank", "source of kind 'low-rank'"),
    "a head": (TipAdapter(), HEADS, "cache", "head of kind 'cache'"),
    "a classifier": (TPT(n_views=4), CLASSIFIERS, "test-time", "classifier of form 'test-time'"),
}
OWN = pytest.mark.parametrize(("method", "known", "kind", "named"), PARTS.values(), ids=PARTS)


def built(method, backbone):
    """A classifier as a fit would leave it, a head filled."""
    classifier = method.build(backbone, NAMES)
    if isinstance(method, TipAdapter):
        classifier.prompt.head = Cache(4, backbone.embed_dim, 3, 10.0, 0.0, 1.0, 5.5)
        small_models.randomise(classifier.prompt, seed=0)
    return classifier


@OWN
def test_what_a_file_kept_is_made_again_by_its_kind(method, known, kind, named, tiny_clip_backbone, pixels, tmp_path):
    classifier = built(method, tiny_clip_backbone)
    save(classifier, tmp_path)
    loaded = load(tmp_path, tiny_clip_backbone)
    assert type(loaded) is type(classifier)
    assert loaded.form_settings() == classifier.form_settings()
    assert loaded.prompt.state_dict().keys() == classifier.prompt.state_dict().keys()
    np.testing.assert_array_equal(loaded.predict_proba(pixels), classifier.predict_proba(pixels))


@OWN
def test_a_kind_that_is_not_known_is_refused_when_saved_and_when_read(
    method, known, kind, named, tiny_clip_backbone, tmp_path, monkeypatch
):
    classifier = built(method, tiny_clip_backbone)
    with monkeypatch.context() as patch:
        patch.delitem(known, kind)
        with pytest.raises(UserError, match=rf"'{kind}', which no file could be read with\. Add it to"):
            save(classifier, tmp_path)
    assert list(tmp_path.iterdir()) == []
    save(classifier, tmp_path)
    monkeypatch.delitem(known, kind)
    with pytest.raises(UserError, match=rf"holds a {named}, which is not known here\. Upgrade mmprompt, or import"):
        load(tmp_path, tiny_clip_backbone)


def test_a_source_of_both_towers_is_kept_as_its_vectors(tiny_clip_backbone, pixels, tmp_path):
    classifier = MaPLe(ctx_init=None).build(tiny_clip_backbone, NAMES)
    save(classifier, tmp_path)
    (source,) = read_header(tmp_path)["sources"]
    assert set(source["sites"]) == {"text.input", "text.layer[1]", "vision.input", "vision.layer[1]"}
    loaded = load(tmp_path, tiny_clip_backbone)
    np.testing.assert_array_equal(loaded.predict_proba(pixels), classifier.predict_proba(pixels))


def test_a_source_that_reads_the_image_needs_a_kind(tiny_clip_backbone, tmp_path):
    class Nameless(Conditioned):
        kind = "vectors"

    source = Nameless(2, tiny_clip_backbone.text_width, tiny_clip_backbone.embed_dim)
    classifier = Classifier(tiny_clip_backbone, Prompt(ClassTemplate.of_context(2), source), NAMES)
    with pytest.raises(UserError, match=r"Nameless gives more than vectors of its own.*Give the class a `kind`"):
        save(classifier, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_low_rank_terms_need_a_kind(tiny_clip_backbone, tmp_path):
    class Nameless(LowRankTerms):
        kind = "vectors"

    classifier = Classifier(
        tiny_clip_backbone, Prompt(ClassTemplate("{}"), Nameless({"text.block[0].query": 32}, rank=2)), NAMES
    )
    with pytest.raises(UserError, match="Nameless gives more than vectors of its own"):
        save(classifier, tmp_path)


def test_a_classifier_of_ones_own_needs_a_form(tiny_clip_backbone, tmp_path):
    class Nameless(Classifier):
        pass

    with pytest.raises(
        UserError, match=r"Nameless has no form of its own.*mmprompt\.classification\.predictor\.CLASSIF"
    ):
        save(Nameless(tiny_clip_backbone, Prompt(ClassTemplate("{}")), NAMES), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_its_kind_no_longer_takes_are_refused(tiny_clip_backbone, tmp_path, monkeypatch):
    save(CLIPLoRA().build(tiny_clip_backbone, NAMES), tmp_path)
    monkeypatch.setitem(SOURCES, "low-rank", lambda places: LowRankTerms(places, rank=2))
    with pytest.raises(UserError, match=r"does not hold the source 'low-rank' as prompt\.json describes it"):
        load(tmp_path, tiny_clip_backbone)


def test_tensors_that_are_not_those_of_the_header_are_refused(tiny_clip_backbone, tmp_path):
    save(built(TipAdapter(), tiny_clip_backbone), tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    head = {**header["head"], "settings": {**header["head"]["settings"], "n_keys": 5}}
    edit_header(tmp_path, is_sealed=True, head=head)
    with pytest.raises(UserError, match=r"does not hold the head 'cache' as prompt\.json describes it"):
        load(tmp_path, tiny_clip_backbone)


EDITS = {
    "no sources": {"sources": None},
    "sources of another kind": {"sources": {"kind": "vectors"}},
    "a source without a kind": {"sources": [{"sites": {}}]},
    "a site that is none": {
        "sources": [{"kind": "vectors", "sites": {"text.output": {"scope": "shared", "shape": [4]}}}]
    },
    "a site without a shape": {"sources": [{"kind": "vectors", "sites": {"text.input": {"scope": "shared"}}}]},
    "a scope that is none": {
        "sources": [{"kind": "vectors", "sites": {"text.input": {"scope": "all", "shape": [4, 32]}}}]
    },
    "another shape": {"sources": [{"kind": "vectors", "sites": {"text.input": {"scope": "shared", "shape": [3, 32]}}}]},
    "a head that is none": {"head": 7},
    "settings that are none": {"head": {"kind": "linear", "settings": [1], "state": {}}},
    "a template that is none": {"template": 4},
    "class names that are none": {"class_names": 4},
    "a form that is none": {"form": ["test-time"]},
    "form settings that are none": {"form_settings": {"colour": "red"}},
    "a backbone that is none": {"backbone": "tiny"},
    "a kind that is none": {"kind": "sculpture"},
    "a kind of another kind": {"kind": ["classification"]},
    "a hash that is none": {"tensors_sha256": None},
}


@pytest.mark.parametrize("changes", EDITS.values(), ids=EDITS)
def test_a_header_that_was_edited_and_sealed_again_is_one_line(changes, saved, tiny_clip_backbone):
    edit_header(saved, is_sealed=True, **changes)
    with pytest.raises(UserError, match=re.escape(str(saved))) as refusal:
        load(saved, tiny_clip_backbone)
    assert "\n" not in str(refusal.value)
