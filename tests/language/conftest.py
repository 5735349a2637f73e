"""Every kind of small language model, of decoders alone and of encoders with one."""

from __future__ import annotations

import pytest

from mmprompt.models.decoder.model import FrozenLanguageModel
from tests.language_models import CAUSAL, ENCODED, frozen_model


@pytest.fixture(scope="module", params=[*CAUSAL, *ENCODED])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> FrozenLanguageModel:
    return frozen_model(kind)
