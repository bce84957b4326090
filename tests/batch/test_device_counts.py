"""The number of devices changes no picture: of the same program not a byte, spread over a mesh at most a grey level."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Processes of their own: programs that another test has compiled would be taken as they are.
CODE = """
import jax, sys
from jaxpa.cli.main import main
count, *runs = sys.argv[1:]
assert jax.device_count() == int(count)
for file, folder in zip(runs[::2], runs[1::2], strict=True):
    if status := main(["batch", file, "--out-dir", folder, "--batch-size", "2"]):
        sys.exit(status)
"""


def batches(devices: int, *runs: str) -> None:
    """Runs of a file into a folder each, on so many devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", CODE, str(devices), *runs], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
def lines(pictures):
    car = f"--subject {shlex.quote(str(pictures / 'car.png'))} --mask {shlex.quote(str(pictures / 'car-mask.png'))}"
    small = "--height 64 --width 64 --steps 1"
    return [
        f"generate --prompt 'a red star' --seed 1 --num-images 2 {small} --out star.png",
        f"personalize {car} --prompt 'a car in the snow' {small} --seed 1 2 --no-figure --out car.png",
    ]


def test_one_device_and_two(lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, spread = Path("plain.txt"), Path("spread.txt")
    plain.write_text("\n".join(lines))
    spread.write_text("\n".join(f"{line} --mesh data=2" for line in lines))
    for name in ("one", "two", "mesh"):
        Path(name).mkdir()
    batches(1, "plain.txt", "one")
    batches(2, "plain.txt", "two", "spread.txt", "mesh")
    names = sorted(file.name for file in Path("one").iterdir())
    assert names == ["car-1.png", "car-2.png", "star-1.png", "star-2.png"]
    for name in names:
        assert (Path("two") / name).read_bytes() == (Path("one") / name).read_bytes(), name
        one, mesh = (np.asarray(Image.open(Path(folder) / name), int) for folder in ("one", "mesh"))
        assert np.abs(one - mesh).max() <= 1, name  # half a batch on each device: another program
