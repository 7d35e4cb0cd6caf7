"""The batch engine under a real Slurm: one node, two GPUs that are terminals, all in a temporary folder. As root.

Not collected with the other tests: `make test-slurm` runs it.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from mtrlib import batch, machine

ROOT = machine.root()
NOTEBOOK = "rq1_auxiliary_tasks"
CONFIGURATION = """
ClusterName=mtrlib
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm():
    """The environment of a running Slurm; what was started is stopped again."""
    with tempfile.TemporaryDirectory(prefix="mtrlib-slurm-") as name:
        folder, started = Path(name), []
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2)))
        (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[20-21]\n")
        # Snakemake takes SLURM_CONF away from srun in a job, which then looks for a system-wide configuration.
        (folder / "bin").mkdir()
        srun = folder / "bin" / "srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        environment["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munged += [f"--{what}-file={folder}/munge.{what}" for what in ("key", "log", "pid", "seed")]
        try:
            for command, ready in (
                (munged, lambda: (folder / "munge.socket").exists()),
                (["slurmctld", "-D"], lambda: "UP" in said(["scontrol", "ping"], environment)),
                (["slurmd", "-D"], lambda: "idle" in said(["sinfo", "-h", "-o", "%T"], environment)),
            ):
                with open(folder / f"{command[0]}.out", "w") as output:
                    started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
                wait_for(ready, 60, lambda: "\n".join(path.read_text() for path in folder.glob("*.[ol][uo][tg]")))
            yield environment
        finally:
            if len(started) == 3:
                subprocess.run(["scancel", "--user=root"], env=environment, timeout=60)
                deadline = time.monotonic() + 30
                while said(["squeue", "-h", "-t", "R,CG"], environment) and time.monotonic() < deadline:
                    time.sleep(0.5)
            for process in reversed(started):
                process.terminate()
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def said(command: list[str], environment: dict) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout


def wait_for(ready, seconds: float, why=lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, why()
        time.sleep(0.5)


def write_parameters(folder: Path) -> None:
    """Three models of 16 rooms of 16 pixels, for one notebook."""
    values = {
        **batch.read(ROOT / "params" / "smoke")[NOTEBOOK],
        **{"tasks": "sd", "more_tasks": "", "size": 16, "train_images": 16, "test_images": 8, "panel_images": 4},
        **{"epochs": 2, "steps": 2, "steps_panel": [1, 2], "eps_panel": [4.0, 8.0]},
        **{"store": str(folder / "store"), "output": str(folder / "out")},
    }
    (folder / "params").mkdir()
    (folder / "params" / f"{NOTEBOOK}.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.timeout(1500)
def test_a_tier_runs_on_two_gpus_and_a_cancelled_job_is_tried_again(slurm, tmp_path):
    write_parameters(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "workflow" / "profiles" / "slurm"), "--directory", str(tmp_path)]
    command += ["--slurm-status-command", "squeue", "--slurm-no-account"]  # no accounting here, and sacct would hang
    command += ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "3"]
    command += ["--config", f"params={tmp_path / 'params'}", "pack=2"]
    environment = {**slurm, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "engine.log", "w") as output:
        engine = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:

        def training() -> list[str]:
            assert engine.poll() is None, (tmp_path / "engine.log").read_text()
            jobs = said(["squeue", "-h", "-t", "R", "-o", "%i %k"], slurm).splitlines()
            return [job.split()[0] for job in jobs if "train" in job]

        wait_for(training, 300, (tmp_path / "engine.log").read_text)
        (cancelled, *_) = training()
        subprocess.run(["scancel", cancelled], env=slurm, check=True)
        logs = (tmp_path / "store" / "batch" / "logs").glob("*.log")
        assert engine.wait(timeout=1200) == 0, "\n".join(log.read_text()[-3000:] for log in logs)
    finally:
        if engine.poll() is None:
            engine.kill()
            engine.wait()
    engine_log = (tmp_path / "engine.log").read_text()
    assert engine_log.count("Trying to restart job") == 1, engine_log
    finished = nbformat.read(tmp_path / "out" / f"{NOTEBOOK}.ipynb", as_version=4)
    assert [cell for cell in finished.cells if cell.cell_type == "code"][-1].outputs
    assert len(list((tmp_path / "store" / "models").glob("*/*/record.json"))) == 3
    began = "".join(path.read_text() for path in (tmp_path / "store" / "batch" / "logs").glob("*.log"))
    assert set(re.findall(r" begins \w+ .* GPU (\S+),", began)) == {"0", "1"}
    assert not list((tmp_path / "store" / "batch").glob("gpus/*")), "Slurm shares GPUs out, not we"
