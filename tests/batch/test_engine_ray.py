"""Ray's engine, on a cluster of this machine with two actors: the bytes of one machine's run. Needs the extra ray."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    os.environ["JAX_PLATFORMS"] = "cpu"
    ray.init(
        num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}}
    )
    yield
    ray.shutdown()


def write(folder, count):
    folder.mkdir()
    file = folder / "rows.jsonl"
    rows = [{"prompt": f"a {colour} star", "seed": k, "height": 64, "width": 64, "steps": 2, "out": f"{k:02d}.png"}
            for k, colour in zip(range(count), ["red", "blue", "green"] * count, strict=False)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


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
