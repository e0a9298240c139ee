"""Several processes that run one study, each on its own devices.

All run the same program on arrays that lie over all devices, and must therefore come to
the same decisions. The first one, which leads, reads and writes the folder; what it
finds there it tells the others. Checkpoints are written by all: each has a part.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import UserError
from experiments.files import to_json

CLUSTERS: Mapping[str, Callable[[str], bool]] = {
    "SLURM_STEP_NUM_TASKS": lambda value: value != "1",  # of srun, not of a whole job
    "OMPI_COMM_WORLD_SIZE": lambda value: value != "1",
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
}
"""Variables that tell of several processes, which JAX then finds by itself."""


class ProcessError(UserError):
    """Processes that cannot be started, or that another one has left."""


def start(coordinator: str | None, count: int | None, process: int | None) -> None:
    """Joins the other processes, before anything asks for a device.

    Args:
      coordinator: HOST:PORT of the first process; None where a cluster tells, or where
        there are no others.
      count: number of processes; 1 without a coordinator is this one alone.
      process: number of this one, from 0.

    Raises:
      ProcessError: they did not come together.
    """
    told = any(k in os.environ and CLUSTERS[k](os.environ[k]) for k in CLUSTERS)
    if coordinator is None and (count == 1 or not told):
        return
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, count, process)
    except Exception as error:  # gRPC's and JAX's own
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        where = f"--coordinator {coordinator}" if coordinator else "the cluster"
        raise ProcessError(
            f"The processes did not come together by {where}: {first}. Start all of "
            "them, each with its own --process, and the same --coordinator and "
            "--processes."
        ) from error


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def leads() -> bool:
    """Whether this process reads and writes for all."""
    return jax.process_index() == 0


def led(function: Callable[[], Any]) -> Any:
    """What a function gives the leading process, in all of them: plain values.

    Raises:
      UserError: it raised one there.
    """
    if not several():
        return function()
    answer: dict[str, Any] = {}
    failed: Exception | None = None
    if leads():
        try:
            answer["value"] = function()
        except (UserError, OSError) as error:
            answer["error"], failed = str(error), error
    answer = _told(answer)
    if failed is not None:
        raise failed
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def all_have(held: bool) -> bool:
    """Whether something holds in every process."""
    if not several():
        return held
    return bool(np.all(multihost_utils.process_allgather(np.int32(held))))


def wait(what: str) -> None:
    """Waits until all processes have come here."""
    if several():
        multihost_utils.sync_global_devices(what)


def _told(value: Any) -> Any:
    """The leading process's plain value."""
    words = np.frombuffer(to_json(value).encode(), np.uint8) if leads() else None
    size = np.int32(0 if words is None else len(words))
    size = int(multihost_utils.broadcast_one_to_all(size))
    # Of few lengths, for each is a program.
    length = 1 << max(10, size.bit_length())
    text = np.zeros(length, np.uint8)
    if words is not None:
        text[:size] = words
    text = np.asarray(multihost_utils.broadcast_one_to_all(text))
    return json.loads(text[:size].astype(np.uint8).tobytes())
