"""The same on every device of a Ray cluster: Ray Data places the work, retries it, and holds back what must wait.

An actor has one JAX process and one device, or as many as its lines spread over, and works as `worker` does, on a few
batches at a time. Whoever consumes the results keeps the journal, so a task that Ray runs twice is written down once;
pictures are the same each time. Where an end is asked for, actors finish the batches in flight, and pass over the rest.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxpa.errors import JaxpaError

if TYPE_CHECKING:  # without JAX: an actor names its cache first
    from jaxpa.batch.worker import Stop

CHUNK = 4  # batches of a task: few enough to lose, and enough that writing overlaps with sampling

Run = Callable[[list[Any], Any, Callable[[tuple[Any, Any, Any]], None], "Stop"], None]
"""(jobs, size of their batches, done, stop): `done` hears (job, what was made, error) of each."""


class Flag:
    """An actor that remembers that an end was asked for."""

    def __init__(self) -> None:
        self.up = False

    def put_up(self) -> None:
        self.up = True

    def is_up(self) -> bool:
        return self.up


class SharedStop(NamedTuple):
    """A stop that any process of the cluster can ask for; flag: the handle of a `Flag`."""

    flag: Any

    def is_set(self) -> bool:
        return import_module("ray").get(self.flag.is_up.remote())


def connect(stop: threading.Event) -> SharedStop:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine. Raises JaxpaError without Ray.

    stop: once it is set, what is returned says so in every process. Ray takes SIGTERM for itself where it starts.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise JaxpaError("--engine ray needs Ray: pip install 'jaxpa[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init()
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JaxpaError(f"the Ray cluster cannot be joined: {' '.join(str(error).split())}") from None
    flag = ray.remote(num_cpus=0, max_restarts=-1)(Flag).remote()

    def wait() -> None:
        stop.wait()
        ray.get(flag.put_up.remote())

    threading.Thread(target=wait, daemon=True).start()
    return SharedStop(flag)


class Task(NamedTuple):
    """Jobs that are sampled together in batches of sizes by their gates (None: that are not), and how to run them."""

    jobs: list[Any]
    size: Any
    run: Run
    stop: SharedStop
    cache: str | None = None


class Actor:
    """What has a device, and keeps its networks between tasks."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        cloudpickle = import_module("ray.cloudpickle")
        results: list[bytes] = []
        for text in batch["task"]:
            task: Task = cloudpickle.loads(text)
            if task.cache is not None:
                os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", task.cache)  # before JAX is imported
            task.run(task.jobs, task.size, lambda each: results.append(cloudpickle.dumps(_portable(each))), task.stop)
        return {"result": results}


def _portable(each: tuple[Any, Any, Any]) -> tuple[int, Any, Exception | None]:
    """An outcome that can be sent: the line's number, what was made, and an error in words."""
    job, made, error = each
    if error is not None and not isinstance(error, JaxpaError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return job.number, made, error


def chunks(jobs: Sequence[Any], size: Any) -> Iterator[list[Any]]:
    """The jobs of a group in tasks of about `CHUNK` batches; each by itself if they share none."""
    chunk, images = list[Any](), 0
    for job in jobs:
        chunk.append(job)
        images += 1 if job.share is None else job.share.images
        if size is None or images >= CHUNK * max(each.images for each in size.values()):
            yield chunk
            chunk, images = [], 0
    if chunk:
        yield chunk


def run_tasks(
    tasks: Sequence[Task], actors: int | None, devices: int = 1
) -> Iterator[tuple[int, Any, Exception | None]]:
    """(line number, what was made, error) of every job, as they come.

    actors: how many; None: as many as have devices, else one for every machine. devices: GPUs or TPU chips of each.
    Raises JaxpaError where no machine has so many.
    """
    ray: Any = import_module("ray")
    data, cloudpickle = import_module("ray.data"), import_module("ray.cloudpickle")
    have = {name: [node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]] for name in ("GPU", "TPU")}
    kind = next((name for name, counts in have.items() if any(counts)), None)
    places = len(ray.nodes()) if kind is None else sum(int(count // devices) for count in have[kind])
    if not places:
        raise JaxpaError(f"lines are spread over {devices} devices, and no machine of the cluster has so many {kind}s")
    own: dict[str, Any] = {"GPU": {"num_gpus": devices}, "TPU": {"resources": {"TPU": devices}}}.get(
        kind or "", {"num_cpus": 1}
    )
    items = [{"task": cloudpickle.dumps(task)} for task in tasks]
    done = data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(actors or places, len(items))),
        **own,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in done.iter_rows():
        yield cloudpickle.loads(row["result"])
