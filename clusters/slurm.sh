#!/bin/bash
# One spec on the nodes of a Slurm job, rendered by `hba cluster render slurm`: change the infra file, and render it again.
#
#   sbatch slurm.sh SPEC [KEY=VALUE]...
#
# From the folder of the checkout, which all nodes see, with its .venv set up.
# A Slurm job has nodes of one kind: here they are the workers `gpu` of the infra file, the first that it lists.
# A job that reaches its time limit or is preempted is queued again, and goes on where it was.
#SBATCH --job-name=hba
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=512G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --exclusive
#SBATCH --requeue
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
port=$((20000 + SLURM_JOB_ID % 20000))

# What is started in the background is srun itself, so that a signal reaches what runs.
step=(srun --overlap --nodes=1 --ntasks=1)
inside=(env)
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

"${step[@]}" --nodelist="$head" "${inside[@]}" hba run "$@" \
    compute.address="$address:$port" compute.storage=/shared/runs tracking.mlflow=FILL_IN_mlflow &
driver=$!
code=0
wait "$driver" || code=$?
exit "$code"
