"""The same on every device of a Ray cluster: Ray Data places the work, retries it, and holds back what must wait.

An actor has one device and one JAX process, and works as `worker` does, on a few batches at a time. Whoever consumes
the results keeps the journal, so a task that Ray runs twice is written down once; pictures are the same each time.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from jaxpa.errors import JaxpaError

CHUNK = 4  # batches of a task: few enough to lose, and enough that writing overlaps with sampling

Run = Callable[[list[Any], Any, Callable[[tuple[Any, Any, Any]], None]], None]
"""(jobs, size of their batches, done): `done` hears (job, what was made, error) of each."""


class Task(NamedTuple):
    """Jobs that are sampled together in batches of a size (None: that are not), and how to run them."""

    jobs: list[Any]
    size: Any
    run: Run
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
            task.run(task.jobs, task.size, lambda each: results.append(cloudpickle.dumps(_portable(each))))
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
        if size is None or images >= CHUNK * size.images:
            yield chunk
            chunk, images = [], 0
    if chunk:
        yield chunk


def run_tasks(tasks: Sequence[Task], actors: int | None) -> Iterator[tuple[int, Any, Exception | None]]:
    """(line number, what was made, error) of every job, as they come. Raises JaxpaError without Ray.

    actors: how many; None: one for every GPU or TPU chip of the cluster, else one for every machine.
    """
    try:
        ray: Any = import_module("ray")
        data, cloudpickle = import_module("ray.data"), import_module("ray.cloudpickle")
    except ImportError:
        raise JaxpaError("--engine ray needs Ray: pip install 'jaxpa[ray]'") from None
    if not ray.is_initialized():
        ray.init()  # the cluster that RAY_ADDRESS names, or one of this machine
    resources = ray.cluster_resources()
    kind = next((name for name in ("GPU", "TPU") if resources.get(name)), None)
    count = actors or int(resources[kind] if kind else len(ray.nodes()))
    own: dict[str, Any] = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}}.get(kind or "", {"num_cpus": 1})
    items = [{"task": cloudpickle.dumps(task)} for task in tasks]
    done = data.from_items(items, override_num_blocks=len(items)).map_batches(
        Actor,
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(count, len(items))),
        **own,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for row in done.iter_rows():
        yield cloudpickle.loads(row["result"])
