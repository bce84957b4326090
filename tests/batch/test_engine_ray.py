"""Ray's engine, on a cluster of this machine with two actors: the bytes of one machine's run. Needs the extra ray."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["JAX_PLATFORMS"] = "cpu"
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    yield
    ray.shutdown()


def write(folder, count):
    folder.mkdir()
    file = folder / "rows.jsonl"
    rows = [{"prompt": f"a {colour} star", "seed": k, "height": 64, "width": 64, "steps": 2, "out": f"{k:02d}.png"}
            for k, colour in zip(range(count), ["red", "blue", "green"] * count, strict=False)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_sigterm(tmp_path):
    """As on one machine: what is in flight is finished, the rest is left, and a rerun makes it. Its own cluster, since
    Ray takes SIGTERM for itself where it starts one."""
    file = write(tmp_path / "many", 64)
    flags = ("--batch-size", "2", "--engine", "ray", "--actors", "2", "--json")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "RAY_ADDRESS": "local"}
    words = (sys.executable, "-m", "jaxpa", "batch", str(file))
    process = subprocess.Popen(
        [*words, *flags], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = next(line for line in process.stdout if line.startswith("{"))
    process.send_signal(signal.SIGTERM)
    out, err = process.stdout.read(), process.stderr.read()  # communicate() misses what was read ahead of `first`
    process.wait(300)
    assert process.returncode == 143, err
    told = [json.loads(line)["files"][0] for line in (first + out).splitlines() if line.startswith("{")]
    assert 1 <= len(told) < 64
    assert "pictures in flight" in err
    assert f"stopped, {64 - len(told)} left" in err
    names = {each.name for each in file.parent.iterdir()}
    assert names == {*told, "rows.jsonl", "rows.jsonl.done.jsonl"}  # all that is made is known, and nothing half-made
    before = {name: (file.parent / name).read_bytes() for name in told}
    again = subprocess.run([*words, "--batch-size", "2"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert f"{64 - len(told)} made, 0 failed, {len(told)} done before" in again.stderr
    assert {name: (file.parent / name).read_bytes() for name in told} == before


def kill_one(folder, killed):
    """Kill an actor once pictures appear."""
    import psutil

    while not list(folder.glob("*.png")):
        time.sleep(0.05)
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or []):
            process.kill()
            killed.append(process.pid)
            return


def test_an_actor_dies(run, cluster, tmp_path):
    one, many = write(tmp_path / "one", 48), write(tmp_path / "many", 48)
    status, _, err = run("batch", one, "--batch-size", 2)
    assert status == 0, err
    killed = []
    killer = threading.Thread(target=kill_one, args=(many.parent, killed), daemon=True)
    killer.start()
    status, out, err = run("batch", many, "--batch-size", 2, "--engine", "ray", "--actors", 2, "--json")
    assert status == 0, err
    assert len(killed) == 1
    assert sorted(json.loads(line)["line"] for line in out.splitlines() if line.startswith("{")) == list(range(1, 49))
    names = {file.name for file in many.parent.iterdir()}
    assert names == {f"{k:02d}.png" for k in range(48)} | {"rows.jsonl", "rows.jsonl.done.jsonl"}
    for k in range(48):
        assert (many.parent / f"{k:02d}.png").read_bytes() == (one.parent / f"{k:02d}.png").read_bytes()
    assert "48 done before" in run("batch", many, "--engine", "ray")[2]
