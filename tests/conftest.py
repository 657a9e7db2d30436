"""What all tests share: the folder of third-party traces, and how hard Hypothesis tries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None)
settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder that holds third-party traces: beside the repository, or where KVSIM_SHARED says."""
    path = Path(os.environ.get("KVSIM_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no third-party traces: {path / 'data'} is not there (KVSIM_SHARED names another place)")
    return path
