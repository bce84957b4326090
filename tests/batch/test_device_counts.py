"""The number of devices changes no picture: of the same program not a byte, spread over a mesh at most a grey level."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

CODE = """
import jax, sys
from jaxpa.cli.main import main
assert jax.device_count() == 2
sys.exit(main(["batch", sys.argv[1], "--out-dir", "two", "--batch-size", "2"])
         or main(["batch", sys.argv[2], "--out-dir", "mesh", "--batch-size", "2"]))
"""


@pytest.fixture(scope="module")
def lines(pictures):
    car = f"--subject {shlex.quote(str(pictures / 'car.png'))} --mask {shlex.quote(str(pictures / 'car-mask.png'))}"
    small = "--height 64 --width 64 --steps 1"
    return [
        f"generate --prompt 'a red star' --seed 1 --num-images 2 {small} --out star.png",
        f"personalize {car} --prompt 'a car in the snow' {small} --seed 1 2 --no-figure --out car.png",
    ]


def test_one_device_and_two(run, lines, tmp_path, monkeypatch, quick_compiles):
    if jax.device_count() != 1:
        pytest.skip("this process was given several devices")
    monkeypatch.chdir(tmp_path)
    plain, spread = Path("plain.txt"), Path("spread.txt")
    plain.write_text("\n".join(lines))
    spread.write_text("\n".join(f"{line} --mesh data=2" for line in lines))
    for name in ("one", "two", "mesh"):
        Path(name).mkdir()
    status, _, err = run("batch", plain, "--out-dir", "one", "--batch-size", 2)
    assert status == 0, err
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run([sys.executable, "-c", CODE, plain, spread], env=environment, check=True, capture_output=True)
    names = sorted(file.name for file in Path("one").iterdir())
    assert names == ["car-1.png", "car-2.png", "star-1.png", "star-2.png"]
    for name in names:
        assert (Path("two") / name).read_bytes() == (Path("one") / name).read_bytes(), name
        one, mesh = (np.asarray(Image.open(Path(folder) / name), int) for folder in ("one", "mesh"))
        assert np.abs(one - mesh).max() <= 1, name  # half a batch on each device: another program
