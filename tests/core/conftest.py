"""What the tests of runs share."""

from __future__ import annotations

import pytest

from tests.run_lab import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A toy Stable Diffusion, 32 px."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
