"""Fixtures that the whole suite shares, and the option for an environment without torch."""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import annotations
import jaxtyping
import numpy as np
import pytest
from golden_set import materialise
from safetensors.numpy import load_file

WITHOUT_TORCH = "--without-torch"
NEEDS_TORCH = "compares with networks of torch"

annotations.install()  # before anything imports the book
# Most programs of the tests run once: LLVM's optimisations would take a third of the suite's time, and save nothing.
# Commands that tests start inherit this. Parity and the lessons compile as users do (`as_users_compile`).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# What one test compiles serves the others, in every worker and command: the first process makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.TemporaryDirectory(prefix="jaxpa-tests-")  # removed when this process ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")  # JAX's own 1 leaves most of them out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        WITHOUT_TORCH, action="store_true", help="skip, and count, the tests against torch, diffusers and torchmetrics"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tests that cannot run are left out only when asked for: otherwise a suite without torch would pass by itself."""
    if not config.getoption(WITHOUT_TORCH) and importlib.util.find_spec("torch") is None:
        raise pytest.UsageError(
            f"torch is not installed: pip install -e '.[test]', or {WITHOUT_TORCH} to skip the tests that need it"
        )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption(WITHOUT_TORCH) and not config.option.collectonly:
        skipped = terminalreporter.stats.get("skipped", [])
        count = sum(NEEDS_TORCH in str(report.longrepr) for report in skipped)
        terminalreporter.write_line(f"tests that need torch, skipped by {WITHOUT_TORCH}: {count}")


# Files of minutes, longest first: one that came last would leave the other workers idle.
LONGEST = (
    "test_pipeline test_examples test_seams test_recipe test_cli_batch test_cli test_attention test_stages test_mesh"
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one worker, where what one compiles serves the next, and what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # `pytest_collection_modifyitems` has the order
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = LONGEST.split()
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))


@pytest.fixture(scope="session")
def torch(pytestconfig: pytest.Config) -> ModuleType:
    """For every test that compares with networks of torch: the module, or a skip where the option says so."""
    if pytestconfig.getoption(WITHOUT_TORCH):
        pytest.skip(NEEDS_TORCH)
    return importlib.import_module("torch")


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


@pytest.fixture(scope="module")
def as_users_compile() -> Iterator[None]:
    """Parity is proven of the programs that users run: XLA optimises as it does for them."""
    import jax

    jax.clear_caches()  # whose keys do not have the option: another file's program would serve
    quick = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture
def as_users_call(monkeypatch) -> None:
    """Annotations are not checked, as in a process of a user's: what is wrong reaches the boundary's own checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, str, str]]:
    """A `jaxpa` command: run("info", "mini") -> its status, stdout and stderr."""
    from jaxpa.cli.main import main

    # Commands keep copies of remote checkpoints; a test's belong into its own folder.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def command(*argv: object) -> tuple[int, str, str]:
        status = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return command
