"""A batch script for Slurm: a Ray head on the first node of the job, workers on all, one spec from its start to its end.

Before its time limit, or when it is preempted, the job is told so: the run ends within the grace period, the job is queued
again and goes on where it was.
"""

from __future__ import annotations

import shlex

from hba_ray.cluster.render.blanks import or_blank
from hba_ray.specs.infra import InfraSpec

_HEAD = """\
#!/bin/bash
# One spec on the nodes of a Slurm job, rendered by `hba cluster render slurm`: change the infra file, and render it again.
#
#   sbatch slurm.sh SPEC [KEY=VALUE]...
#
# {from_where}
# A Slurm job has nodes of one kind: here they are the workers `{kind}` of the infra file, the first that it lists.
# A job that reaches its time limit or is preempted is queued again, and goes on where it was.
{directives}
set -euo pipefail
"""
_BODY = """
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
port=$((20000 + SLURM_JOB_ID % 20000))

# What is started in the background is srun itself, so that a signal reaches what runs.
step=(srun --overlap --nodes=1 --ntasks=1)
inside=(CONTAINER)
node=("${inside[@]}" ray start --num-cpus="$SLURM_CPUS_PER_TASK" --block)

driver=
again() {
    trap '' TERM
    if [ -n "$driver" ]; then kill -TERM "$driver" || true; wait "$driver" || true; fi
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again TERM

"${step[@]}" --nodelist="$head" "${node[@]}" --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 &
"${step[@]}" --nodelist="$head" "${inside[@]}" hba cluster wait "$address:$port"
for other in "${nodes[@]:1}"; do "${step[@]}" --nodelist="$other" "${node[@]}" --address="$address:$port" & done
"${step[@]}" --nodelist="$head" "${inside[@]}" hba cluster wait "$address:$port" --nodes "${#nodes[@]}"

"${step[@]}" --nodelist="$head" "${inside[@]}" hba run "$@" \\
    compute.address="$address:$port" compute.storage=STORAGE tracking.mlflow=MLFLOW &
driver=$!
code=0
wait "$driver" || code=$?
exit "$code"
"""


def render_slurm(infra: InfraSpec) -> str:
    """The batch script."""
    slurm, (kind, worker) = infra.slurm, next(iter(infra.workers.items()))
    directives = {
        "job-name": infra.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        **({"gpus-per-node": worker.gpus} if worker.gpus else {}),
        "cpus-per-task": worker.cpus,
        "mem": f"{worker.memory_gib}G",
        "time": slurm.time,
        **({"partition": slurm.partition} if slurm.partition else {}),
        **({"account": slurm.account} if slurm.account else {}),
        "signal": f"B:TERM@{slurm.grace_seconds}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in directives.items()] + ["#SBATCH --exclusive", "#SBATCH --requeue"]
    here = "From the folder of the checkout, which all nodes see, with its .venv set up."
    from_where = "SPEC is a file in a folder that all nodes see." if slurm.container else here
    head = _HEAD.format(from_where=from_where, kind=kind, directives="\n".join(lines))
    setup = "" if slurm.container else '\nexport PATH="$PWD/.venv/bin:$PATH"'
    body = _BODY.replace("CONTAINER", _container(infra)).replace("STORAGE", shlex.quote(infra.storage))
    return head + setup + body.replace("MLFLOW", or_blank(infra.mlflow, "mlflow"))


def _container(infra: InfraSpec) -> str:
    """Words between those of srun and a command, with which the command runs in the container."""
    slurm = infra.slurm
    if slurm.container is None:
        return "env"
    image = shlex.quote(slurm.container)
    if slurm.runtime == "apptainer":
        bind = f"--bind {infra.mount} " if infra.mount else ""
        return f'apptainer exec --nv {bind}--bind "$PWD" --pwd "$PWD" {image}'
    mounts = f"{infra.mount}:{infra.mount}," if infra.mount else ""
    return f'--container-image={image} --container-mounts="{mounts}$PWD:$PWD" --container-workdir="$PWD"'
