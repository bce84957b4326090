"""A cache that one process has filled leaves the next one nothing to compile, wherever the cache is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_a_second_process_compiles_nothing(tmp_path):
    """Other words, another seed; the folder is named as one names a cluster's."""

    def made(prompt: str, seed: int, name: str) -> dict:
        words = ["generate", "--prompt", prompt, "--seed", seed, "--steps", 1, "--json", "--out", tmp_path / name]
        variables = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
                     "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
        env = os.environ | variables
        env.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)  # of tests: users have it unset
        done = subprocess.run(
            [sys.executable, "-m", "jaxpa", *map(str, words)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = made("a red star", 0, "a.png"), made("a blue car on a beach", 1, "b.png")
    assert first["cached_programs"] == 0 < first["programs"]
    assert second["cached_programs"] == second["programs"] == first["programs"]
    a, b = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert (a != b).any()
