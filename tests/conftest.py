"""Fixtures that the whole suite shares."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_set import materialise
from safetensors.numpy import load_file


@dataclass(frozen=True)
class Goldens:
    """A folder of golden tensors; `JAXPA_GOLDENS` names another one of the same layout and other sizes."""

    path: Path

    @cache  # noqa: B019 - one instance for the whole run
    def load(self, name: str) -> dict[str, np.ndarray]:
        return load_file(self.path / name)

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Goldens:
    """The folder that `JAXPA_GOLDENS` names, as it is; else the repository's, made whole in a temporary folder."""
    if named := os.environ.get("JAXPA_GOLDENS"):
        return Goldens(Path(named))
    return Goldens(materialise(Path(__file__).parent / "goldens", tmp_path_factory.mktemp("goldens")))


@pytest.fixture(scope="session")
def pictures() -> Path:
    """References and masks of the examples."""
    return Path(__file__).parent.parent / "examples" / "pictures"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, str]]:
    """A `jaxpa` command: run("info", "mini") -> its status, stdout and stderr."""
    from jaxpa.cli.main import main

    # Commands keep compiled programs; a test's belong into its own folder.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def command(*argv: object) -> tuple[int, str, str]:
        status = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return command
