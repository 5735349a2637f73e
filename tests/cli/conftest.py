from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def words_alone(blank_figures: None) -> None:
    """Figures are painted in the tests of reports."""
