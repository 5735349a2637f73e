from __future__ import annotations

import shutil
import sys

import pytest

from mmprompt.captioning.metrics.java_metrics import JAVA_METRICS, java_score
from mmprompt.errors import UserError

CAPTIONS = {"1": "a red dog", "2": "a cat sits on a mat"}
REFERENCES = {"1": ["the red dog", "a dog"], "2": ["a cat is on the mat"]}


@pytest.mark.parametrize("metric", JAVA_METRICS)
def test_without_pycocoevalcap_one_line_says_what_to_install(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"pycocoevalcap.{metric}.{metric}", None)
    with pytest.raises(UserError, match=r"mmprompt\[coco-metrics\]"):
        java_score(metric, CAPTIONS, REFERENCES)


@pytest.mark.parametrize("metric", JAVA_METRICS)
def test_without_java_one_line_says_so(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap, of the extra coco-metrics")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=f"{metric.upper()} runs in Java, which was not found"):
        java_score(metric, CAPTIONS, REFERENCES)


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'meteor'"):
        java_score("metoer", CAPTIONS, REFERENCES)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR runs in Java, which is not here")
def test_meteor_prefers_the_better_captions() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap, of the extra coco-metrics")
    same = java_score("meteor", {key: texts[0] for key, texts in REFERENCES.items()}, REFERENCES)
    assert 0 < java_score("meteor", CAPTIONS, REFERENCES) < same <= 1
