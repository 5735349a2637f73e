import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.classification.methods import VPT, CoOp, make_method
from mmprompt.core import file
from mmprompt.core.file import load, read_header, save
from mmprompt.errors import UserError
from mmprompt.files import sha256_bytes, tensor_bytes

NAMES = ["cat", "dog", "bird"]


@pytest.fixture
def saved(tiny_clip_backbone, tmp_path):
    save(CoOp(n_ctx=4).build(tiny_clip_backbone, NAMES), tmp_path / "prompt", {"seed": 1})
    return tmp_path / "prompt"


def edit_header(folder, is_sealed=False, **changes):
    """Change the header; sealed with a fresh hash as an attacker or another program would."""
    header = json.loads((folder / file.HEADER).read_text())
    header.pop("header_sha256")
    header |= changes
    seal = file._header_hash(header) if is_sealed else "0" * 64
    (folder / file.HEADER).write_text(json.dumps(header | {"header_sha256": seal}))


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
    path = saved / file.TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="was changed after it was saved"):
        load(saved, tiny_clip_backbone)


def test_nan_is_refused(saved, tiny_clip_backbone):
    values = torch.full((4, tiny_clip_backbone.text_width), float("nan"))
    data = tensor_bytes({"text.input": values, "class_features": torch.zeros(3, tiny_clip_backbone.embed_dim)})
    (saved / file.TENSORS).write_bytes(data)
    edit_header(saved, is_sealed=True, tensors_sha256=sha256_bytes(data))
    with pytest.raises(UserError, match=r"NaN or infinity in 'text\.input'"):
        load(saved, tiny_clip_backbone)


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


def test_truncated_header_is_refused(saved, tiny_clip_backbone):
    path = saved / file.HEADER
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="is not valid JSON"):
        load(saved, tiny_clip_backbone)


def test_saving_where_nothing_can_be_written_is_refused(tiny_clip_backbone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        save(VPT().build(tiny_clip_backbone, NAMES), tmp_path / "file" / "prompt")
