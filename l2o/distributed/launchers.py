"""Launchers: which of several processes this one is, from flags, SLURM or Open MPI.

`jax.distributed.initialize` detects both, too, but not before it connects; see docs/scaling.md.
"""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
"""Variables that `srun` sets for each task."""

OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
"""Variables that `mpirun` of Open MPI sets for each process."""

PORTS = range(61440, 65536)
"""Ports of which the coordinator gets one if none is given."""


@dataclass(frozen=True)
class ProcessSpec:
    """Number and address of one process among several that take part in a run.

    Attributes:
        launcher: Source of this information, in words.
        coordinator: HOST:PORT at which the others can reach process 0.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
    """

    launcher: str
    coordinator: str
    num_processes: int
    process_id: int


def launcher(environ: Mapping[str, str] = os.environ) -> str | None:
    """Name what started this process as one of several, or None."""
    # Open MPI first: inside a job of SLURM its processes see the variables of both.
    if all(name in environ for name in OPEN_MPI):
        return "Open MPI"
    if all(name in environ for name in SLURM):
        return f"SLURM job {environ['SLURM_JOB_ID']}"
    return None


def detect_process(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ProcessSpec:
    """Find out which process this is.

    >>> detect_process(coordinator="127.0.0.1:29500", num_processes=2, process_id=1).process_id
    1

    Args:
        coordinator: HOST:PORT of process 0; by default what SLURM or Open MPI say.
        num_processes: Number of processes; by default what SLURM or Open MPI say.
        process_id: Number of this process; by default what SLURM or Open MPI say.
        environ: Environment variables.

    Raises:
        ValueError: If something is missing or does not fit; says what to type.
    """
    found = launcher(environ)
    if found is not None:
        size, rank = OPEN_MPI[:2] if found == "Open MPI" else SLURM[2:]
        num_processes = int(environ[size]) if num_processes is None else num_processes
        process_id = int(environ[rank]) if process_id is None else process_id
        if coordinator is None:
            make = _open_mpi_coordinator if found == "Open MPI" else _slurm_coordinator
            coordinator = make(environ)
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if coordinator is None or num_processes is None or process_id is None:
        missing = [f"`{name}`" for name, value in given.items() if value is None]
        raise ValueError(
            f"`distributed` needs {', '.join(missing)}: neither SLURM nor Open MPI started this "
            "process. Try --coordinator 127.0.0.1:29500 --num-processes 2 --process-id 0 here, and "
            "the same with --process-id 1 in a second shell."
        )
    if num_processes < 1:
        raise ValueError(f"`num_processes` must be at least 1; got {num_processes}. Try 2.")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"`process_id` must be between 0 and {num_processes - 1}; got {process_id}. "
            "Try process_id=0, and count up."
        )
    split_address(coordinator)
    return ProcessSpec(found or "flags", coordinator, num_processes, process_id)


def split_address(coordinator: str) -> tuple[str, int]:
    """Split HOST:PORT into the host, without brackets, and the port.

    Raises:
        ValueError: If it is not one.
    """
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):(\d{1,5})", coordinator)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(
            f"`coordinator` must be HOST:PORT; got {coordinator}. Try coordinator=127.0.0.1:29500."
        )
    return match[1].strip("[]"), int(match[2])


def _slurm_coordinator(environ: Mapping[str, str]) -> str:
    """The first host of the step; node[007-009,012],other stands for node007 and so on."""
    first = re.sub(r"\[(\d+)[^\]]*\]", r"\1", environ["SLURM_STEP_NODELIST"]).split(",")[0]
    return f"{first}:{_port(environ['SLURM_JOB_ID'])}"


def _open_mpi_coordinator(environ: Mapping[str, str]) -> str | None:
    """Loopback on one host; on several the host of `mpirun`, which Open MPI 5 does not tell."""
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    port = _port(environ.get("PMIX_NAMESPACE") or uri)
    if environ["OMPI_COMM_WORLD_LOCAL_SIZE"] == environ["OMPI_COMM_WORLD_SIZE"]:
        return f"127.0.0.1:{port}"
    host = re.search(r"tcp://([^:,]+)", uri)
    return f"{host[1]}:{port}" if host else None


def _port(job: str) -> int:
    """The same in all processes of a job, and most likely another in another job."""
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)]
