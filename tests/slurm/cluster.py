"""Run a command beside a Slurm cluster of one node on this machine, with two pretend GPUs.

    python -m tests.slurm.cluster pytest tests/slurm

Needs root and Debian's packages slurm-wlm and munge, which it installs where it can; elsewhere it says what is missing and exits
with 77. The cluster listens on the loopback address alone. Its configuration lies where Slurm was compiled to look for it,
/etc/slurm, in a mount namespace of its own: the machine's files stay as they are, and other processes do not see the cluster.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MISSING = 77
"""Exit code where there can be no cluster, as automake's for a test that is skipped."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "unshare", "sbatch")
CPUS, MEMORY = os.cpu_count() or 1, 16000
"""What the node says it has: processors, and MiB, whether there are so many or not."""
SETTINGS = f"""\
ClusterName=roastery
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={{folder}}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={{controller}}
SlurmdPort={{node}}
SlurmctldPidFile={{folder}}/slurmctld.pid
SlurmdPidFile={{folder}}/slurmd.pid
SlurmdSpoolDir={{folder}}/spool
StateSaveLocation={{folder}}/state
SlurmctldLogFile={{folder}}/slurmctld.log
SlurmdLogFile={{folder}}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
GresTypes=gpu
KillWait=30
MinJobAge=7200
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmctldTimeout=300
SlurmdTimeout=300
NodeName=localhost NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
LIMIT = 60
"""Seconds within which the node must be ready."""


def missing() -> str:
    """Why there can be no cluster on this machine; empty if there can. Installs Debian's packages if it may."""
    if os.geteuid():
        return "only root can mount and start Slurm's daemons"
    if _programs() and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
            subprocess.run(["apt-get", "-qq", *words], env=environment, **quiet, check=False)
    if lacking := _programs():
        return f"missing programs: {', '.join(lacking)} (Debian's packages slurm-wlm and munge)"
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    return probe.stderr.strip() if probe.returncode else ""


def _programs() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name)]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def _daemons(folder: Path) -> Iterator[None]:
    """munged, slurmctld and slurmd, until the block ends."""
    for name in ("spool", "state", "etc"):
        (folder / name).mkdir()
    for number in (0, 1):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # like /dev/null
    settings = SETTINGS.format(folder=folder, controller=_free_port(), node=_free_port())
    (folder / "etc/slurm.conf").write_text(settings)
    (folder / "etc/gres.conf").write_text(f"NodeName=localhost Name=gpu File={folder}/gpu[0-1]\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    Path("/etc/slurm").mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder / "etc"), "/etc/slurm"], check=True)
    files = {"key-file": key, "pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
    files |= {"seed-file": folder / "munged.seed", "socket": folder / "munge.socket"}
    with contextlib.ExitStack() as stack:
        for words in (
            ["munged", "--force", "--foreground", *(f"--{name}={path}" for name, path in files.items())],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", "localhost"],
        ):
            stack.callback(_stop, start(words, folder))
            time.sleep(0.5)
        _wait(folder)
        stack.callback(_stop_restarted, folder)
        yield


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a daemon, whose output goes to its log in the cluster's folder."""
    log = (folder / f"{words[0]}.out").open("ab")
    return subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_restarted(folder: Path) -> None:
    """Stop a controller that a test started after the first one was killed, and wait until it has written its state."""
    with contextlib.suppress(OSError, ValueError):
        number = int((folder / "slurmctld.pid").read_text())
        os.kill(number, signal.SIGTERM)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            os.kill(number, 0)
            time.sleep(0.1)


def _wait(folder: Path) -> None:
    """Wait until the node takes jobs. Raises RuntimeError with the daemons' last words if it does not."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        said = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
        if said.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = [f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(folder.glob("*.log"))]
    raise RuntimeError("the node is not idle: " + said.stdout + said.stderr + "\n".join(logs))


def main() -> int:
    if os.environ.get("ROASTERY_CLUSTER") is None:
        if why := missing():
            print(f"no Slurm cluster on this machine: {why}")
            return MISSING
        with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
            environment = {**os.environ, "ROASTERY_CLUSTER": folder}
            command = ["unshare", "-m", sys.executable, "-m", __spec__.name, *sys.argv[1:]]
            return subprocess.run(command, env=environment).returncode
    with _daemons(Path(os.environ["ROASTERY_CLUSTER"])):
        return subprocess.run(sys.argv[1:]).returncode


if __name__ == "__main__":
    sys.exit(main())
