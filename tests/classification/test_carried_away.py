"""A finished thing is carried elsewhere: in a pickle, and to a machine where the weights have another place."""

from __future__ import annotations

import pickle  # noqa: TID251 - what others do with an estimator
import shutil

import joblib
import numpy as np
import pytest

import mmprompt as mp
from mmprompt.cli.main import main
from mmprompt.models.dual_encoder.load import load_backbone


@pytest.fixture(scope="module")
def moving(tmp_path_factory, tiny_open_clip_folder):
    """A model folder that a test may move away."""
    return shutil.copytree(tiny_open_clip_folder, tmp_path_factory.mktemp("moving") / "model")


def test_a_fitted_estimator_survives_pickle_and_joblib(moving, picture_folder, tmp_path):
    paths = sorted(picture_folder.rglob("*.png"))
    recipe = mp.Recipe(epochs=1, augment="none")
    model = mp.PromptClassifier(str(moving), mp.CoOp(n_ctx=2), recipe).fit(paths, [path.parent.name for path in paths])
    expected = model.predict_proba(paths[:3])
    joblib.dump(model, tmp_path / "model.joblib")
    for again in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        assert np.array_equal(again.predict_proba(paths[:3]), expected)
        assert list(again.classes_) == list(model.classes_)
    assert (tmp_path / "model.joblib").stat().st_size < 60_000  # the frozen weights are not in it


def test_a_pickle_is_refused_on_other_weights(moving, tmp_path):
    held = pickle.dumps(load_backbone(str(moving), device="cpu"))
    assert pickle.loads(held).name == str(moving)
    with pytest.raises(mp.UserError, match="has other weights"):
        pickle.loads(held.replace(load_backbone(str(moving), device="cpu").fingerprint.encode(), b"0" * 64))


def test_a_run_says_how_to_name_weights_that_lie_elsewhere(moving, run_folder, pictures, tmp_path, monkeypatch, capsys):
    moved = tmp_path / "moved"
    classifier = mp.CoOp(n_ctx=2).build(load_backbone(str(moving), device="cpu"), ["red", "blue"])
    mp.save(classifier, tmp_path / "run")
    shutil.move(moving, moved)
    image = str(pictures / "red" / "0.png")
    for words in (["predict", str(tmp_path / "run"), image], ["export", str(tmp_path / "run"), "--to", "npy"]):
        capsys.readouterr()
        assert main(words) == 2
        refusal = capsys.readouterr().err
        assert "its frozen model cannot be loaded" in refusal
        assert "say where: --backbone NAME" in refusal
        assert main([*words, "--backbone", str(moved)]) == 0
    with pytest.raises(mp.UserError, match="say where: `model=NAME`"):
        mp.load(tmp_path / "run")
    assert mp.load(tmp_path / "run", str(moved)).class_names == ("red", "blue")
    shutil.move(moved, moving)
