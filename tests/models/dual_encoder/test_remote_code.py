"""A model that brings its own code along neither runs it nor asks whether it may."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.load import load_backbone


@pytest.fixture
def with_code(tmp_path: Path) -> tuple[Path, Path]:
    """A folder whose text tower is a model with code of its own, and the file that this code makes."""
    mark, text = tmp_path / "ran", tmp_path / "text"
    text.mkdir()
    (text / "evil.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(mark)!r}).touch()\n"
        "class Evil(PretrainedConfig):\n    model_type = 'evil'\n"
    )
    (text / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    towers = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_proj_type": "mlp"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": towers}))
    return tmp_path, mark


@pytest.mark.parametrize("is_allowed", [False, True])
def test_a_text_tower_with_code_of_its_own_is_refused_without_a_question(
    is_allowed: bool, with_code: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, mark = with_code
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError):
        load_backbone(str(folder), device="cpu", trust_remote_code=is_allowed)
    assert not mark.exists()
    assert "Do you wish" not in "".join(capfd.readouterr())
