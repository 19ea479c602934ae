"""Which process this is, from flags and from what SLURM and Open MPI set."""

import pytest

from l2o.distributed.launchers import PORTS, detect_process, launcher, split_address

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NODELIST": "node[007-009,012],other",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[007-009,012],other", "node007"),
        ("node[3,5]", "node3"),
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("rack-2-[01-16]", "rack-2-01"),
        ("a[1-2]b[3-4]", "a1b3"),
    ],
)
def test_slurm(nodes, first):
    found = detect_process(environ=SLURM | {"SLURM_STEP_NODELIST": nodes})
    host, port = split_address(found.coordinator)
    assert (found.launcher, found.num_processes, found.process_id) == ("SLURM job 4711", 8, 3)
    assert host == first and port in PORTS
    others = detect_process(environ=SLURM | {"SLURM_STEP_NODELIST": nodes, "SLURM_PROCID": "0"})
    assert others.coordinator == found.coordinator and others.process_id == 0


def test_open_mpi_on_one_host():
    found = detect_process(
        environ=OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "a@1"}
    )
    host, port = split_address(found.coordinator)
    assert (found.launcher, found.num_processes, found.process_id) == ("Open MPI", 4, 2)
    assert host == "127.0.0.1" and port in PORTS


def test_open_mpi_inside_a_job_of_slurm():
    found = detect_process(environ=SLURM | OPEN_MPI | URI)
    assert (found.launcher, found.num_processes, found.process_id) == ("Open MPI", 4, 2)


def test_open_mpi_on_several_hosts():
    assert detect_process(environ=OPEN_MPI | URI).coordinator.startswith("10.96.0.1:")
    with pytest.raises(ValueError, match=r"`distributed` needs `coordinator`:.*Open MPI"):
        detect_process(environ=OPEN_MPI)
    given = detect_process(coordinator="node1:29500", environ=OPEN_MPI)
    assert given.coordinator == "node1:29500" and given.process_id == 2


def test_what_is_given_goes_first():
    found = detect_process(coordinator="h:1", num_processes=2, process_id=1, environ=SLURM)
    assert (found.coordinator, found.num_processes, found.process_id) == ("h:1", 2, 1)


def test_neither():
    assert launcher({}) is None and launcher(OPEN_MPI) == "Open MPI"
    message = r"`distributed` needs `coordinator`, `num_processes`, `process_id`: .* Try --coord"
    with pytest.raises(ValueError, match=message):
        detect_process(environ={})
    with pytest.raises(ValueError, match="needs `process_id`: "):
        detect_process(coordinator="h:1", num_processes=2, environ={})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1", 2, 0), r"`coordinator` must be HOST:PORT; got 127\.0\.0\.1\. Try"),
        (("h:0", 2, 0), "HOST:PORT; got h:0"),
        (("h:65536", 2, 0), "HOST:PORT; got h:65536"),
        (("::1:80", 2, 0), "HOST:PORT; got ::1:80"),
        (("h:1", 0, 0), "`num_processes` must be at least 1; got 0"),
        (("h:1", 2, 2), "`process_id` must be between 0 and 1; got 2"),
        (("h:1", 2, -1), "`process_id` must be between 0 and 1; got -1"),
    ],
)
def test_mistakes(given, message):
    coordinator, num_processes, process_id = given
    with pytest.raises(ValueError, match=message):
        detect_process(
            coordinator=coordinator, num_processes=num_processes, process_id=process_id, environ={}
        )


def test_addresses():
    assert split_address("node1.cluster:29500") == ("node1.cluster", 29500)
    assert split_address("[::1]:29500") == ("::1", 29500)
