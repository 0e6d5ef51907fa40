"""A real Slurm on this machine: one controller, several nodes, all files in one folder.

Every node is a `slurmd -N name` of its own on a port of its own. Nothing outside `folder` is
touched, and all processes end with the context.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol")
INSTALL = "apt-get install slurmctld slurmd slurm-client munge"

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
JobRequeue=1
KillWait=20
OverTimeLimit=0
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP
"""


def missing_programs() -> str:
    """What keeps Slurm from running here, in words; empty when nothing does."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return f"{', '.join(missing)} not installed ({INSTALL})" if missing else ""


class Slurm:
    """A running cluster.

    Arguments:
        folder: for its files.
        nodes: how many; they are called node1, node2, …
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.names = [f"node{i + 1}" for i in range(nodes)]
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        for name in [name for name in self.env if name.startswith(("SBATCH_", "SRUN_"))]:
            del self.env[name]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command that talks to this cluster; fails with its output."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def job(self, job: str) -> dict[str, str]:
        """`scontrol show job` as a dictionary."""
        text = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", text.splitlines()[0]))

    def states(self, job: str) -> list[str]:
        """States of a job's tasks (one, unless it is an array)."""
        text = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return re.findall(r"JobState=(\w+)", text)

    def wait(self, job: str, timeout: float, *expected: str) -> dict[str, str]:
        """Waits until a job is in one of the states `expected` (by default, any final one)."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE")
        deadline = time.monotonic() + timeout
        while not set(self.states(job)) <= set(expected or final):
            assert time.monotonic() < deadline, f"job {job} after {timeout} s: {self.job(job)}"
            time.sleep(0.3)
        return self.job(job)

    def restart(self, job: str, timeout: float = 60) -> None:
        """Waits for a job's requeue, and spares it the two minutes that Slurm then lets pass."""
        self.wait(job, timeout, "PENDING")
        time.sleep(3)  # a start within the second of the requeue would be refused by the nodes
        self.run("scontrol", "update", f"jobid={job}", "starttime=now")

    def resume(self) -> None:
        """Brings every node back."""
        for name in self.names:
            self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)


@contextmanager
def start_slurm(folder: Path, nodes: int = 4, cpus: int = 8, gpus: int = 4) -> Iterator[Slurm]:
    """Starts a cluster in `folder` and stops it.

    Arguments:
        folder: an empty folder.
        nodes: how many nodes.
        cpus: that each node claims to have.
        gpus: that each node claims to have.
    """
    slurm = Slurm(folder, nodes)
    _write_config(slurm, cpus, gpus)
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        with open(folder / "daemons.log", "ab") as log:
            daemons.append(subprocess.Popen(words, env=slurm.env, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", *_munge_options(folder))
        _wait_for(folder / "munge.socket", 20)
        start("slurmctld", "-D")
        for name in slurm.names:
            start("slurmd", "-D", "-N", name)
        _wait_until_idle(slurm)
        yield slurm
    finally:
        _stop(slurm, daemons)


def _write_config(slurm: Slurm, cpus: int, gpus: int) -> None:
    folder = slurm.folder
    for name in ("state", *(f"spool-{node}" for node in slurm.names)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname()
    port, *ports = _free_ports(1 + len(slurm.names))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} "
        f"CPUs={cpus} RealMemory=16000 Gres=gpu:{gpus} State=UNKNOWN"
        for name, own in zip(slurm.names, ports)
    )
    conf = CONF.format(host=host, user=getpass.getuser(), folder=folder, port=port, nodes=nodes)
    (folder / "slurm.conf").write_text(conf)
    for gpu in range(gpus):
        (folder / f"gpu{gpu}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _munge_options(folder: Path) -> list[str]:
    return [
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
    ]


def _wait_until_idle(slurm: Slurm) -> None:
    deadline = time.monotonic() + 60
    while True:
        done = slurm.run(
            "sinfo", "--noheader", "--partition=main", "--format=%T", "--Node", check=False
        )
        if done.stdout.split() == ["idle"] * len(slurm.names):
            return
        if time.monotonic() > deadline:
            logs = "".join(
                f"{path.name}: {path.read_text()[-2000:]}\n" for path in slurm.folder.glob("*.log")
            )
            raise AssertionError(f"Slurm did not start: {done.stdout}{done.stderr}\n{logs}")
        time.sleep(0.2)


def _stop(slurm: Slurm, daemons: Sequence[subprocess.Popen[bytes]]) -> None:
    """Cancels every job, then ends the daemons in the order that lets them say goodbye."""
    if len(daemons) > 1:
        slurm.run("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}", check=False)
        slurm.run("scancel", f"--user={getpass.getuser()}", check=False)
        deadline = time.monotonic() + 10
        while slurm.run("squeue", "--noheader", check=False).stdout.strip():
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
    for daemon in reversed(daemons):
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_for(path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def _path() -> str:
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
