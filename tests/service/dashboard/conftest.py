"""One scene for all tests that only read, one for those that write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service.dashboard.scene import Scene, open_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """For tests that add to it; none may count on what another left."""
    with open_scene(tmp_path_factory.mktemp("own")) as made:
        yield made
