"""Processes on this machine that train together over loopback, and that end together.

The parent starts them and keeps a pipe to each. However the parent ends, be it Ctrl-C, an error
or `kill -9`, no process is left behind.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax


@contextlib.contextmanager
def local_processes(
    command: Sequence[str], count: int, environment: dict[str, str] | None = None, **popen: Any
) -> Iterator[list[subprocess.Popen]]:
    """Starts `count` processes of one command, which then call `join`; kills them at the end."""
    address = f"127.0.0.1:{free_port()}"
    processes: list[subprocess.Popen] = []
    try:
        for index in range(count):
            variables = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_COORDINATOR_BIND_ADDRESS": address,  # loopback only, not every interface
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
                "END_WITH_PARENT": "1",
            }
            # A session of its own: Ctrl-C reaches the parent alone, which ends all of it.
            processes.append(
                subprocess.Popen(
                    command,
                    env=os.environ | variables | (environment or {}),
                    stdin=subprocess.PIPE,
                    start_new_session=True,
                    **popen,
                )
            )
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.communicate()  # closes the pipes and takes the exit status


def wait(processes: Sequence[subprocess.Popen], timeout: float | None = None) -> int:
    """Waits until all have ended well (0) or one has not (its status); TimeoutError if late."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        statuses = [process.poll() for process in processes]
        failed = [status for status in statuses if status]
        if failed or None not in statuses:
            return failed[0] if failed else 0
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"Expected all processes to end in {timeout} s, got {statuses}.")
        time.sleep(0.05)


def join(devices: int | None = None) -> None:
    """Joins the processes that belong together, before anything else is asked of JAX.

    Started by `local_processes` (or with the same three environment variables), this process
    joins those; otherwise `jax.distributed.initialize()` finds the cluster: TPU pods, SLURM, Open
    MPI, Kubernetes.

    Args:
        devices: Number of CPU devices of this process, or None for the accelerators there are.
    """
    if devices is not None:
        use_host_devices(devices)
    if "JAX_NUM_PROCESSES" not in os.environ:
        jax.distributed.initialize()
        return
    end_with_parent()
    jax.distributed.initialize(
        os.environ["JAX_COORDINATOR_ADDRESS"],
        num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
        process_id=int(os.environ["JAX_PROCESS_ID"]),
        cluster_detection_method="deactivate",
    )


def use_host_devices(devices: int) -> None:
    """Makes `devices` devices of the CPU, before anything else is asked of JAX."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    # On few busy cores devices may wait long for each other: slow is no failure.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        + " --xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    )


def end_with_parent() -> None:
    """Ends this process as soon as the pipe to its parent closes, if `local_processes` made one."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    if "END_WITH_PARENT" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
