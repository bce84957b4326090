"""Several processes, on one host or many, that run one program over all their devices (`jax.distributed`).

Every process runs the same command. JAX finds the others where Slurm, Open MPI, Kubernetes or Cloud TPU started them;
elsewhere three variables say who they are:

    JAX_COORDINATOR_ADDRESS=HOST:PORT  JAX_NUM_PROCESSES=2  JAX_PROCESS_ID=0  jaxpa generate --distributed --mesh ...
"""

import os

import jax

from jaxpa.errors import JaxpaError

COUNT, NUMBER = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Join the other processes, before anything asks JAX for a device. Raises JaxpaError where there are none."""
    said = {name: os.environ[name] for name in (COUNT, NUMBER) if name in os.environ}
    if wrong := [f"{name}={value}" for name, value in said.items() if not value.isdecimal()]:
        raise JaxpaError(f"{wrong[0]} is not a whole number")
    count, number = (int(said[name]) if name in said else None for name in (COUNT, NUMBER))
    try:
        jax.distributed.initialize(num_processes=count, process_id=number)
    except (ValueError, RuntimeError) as error:
        raise JaxpaError(
            f"--distributed finds no other processes ({str(error).splitlines()[0]}): start them by Slurm, Open MPI, "
            f"Kubernetes or on Cloud TPU, or set JAX_COORDINATOR_ADDRESS=HOST:PORT, {COUNT} and {NUMBER} for each"
        ) from None


def writes() -> bool:
    """Whether this process is the one of all that writes files and reports."""
    return jax.process_index() == 0
