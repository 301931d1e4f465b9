#!/bin/bash
# One spec on the nodes of a Slurm job: a Ray head on the first node, workers on the others.
#
#   sbatch clusters/slurm.sh experiments/quickstart.yaml compute.storage=/shared/runs
#
# From the folder of the checkout, which all nodes see, with its .venv set up. A job that hits its time
# limit or is preempted is queued again, and goes on where it was.
#SBATCH --job-name=hba
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')"
port=$((20000 + SLURM_JOB_ID % 20000))

start() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" ray start "${@:2}" --num-cpus="$SLURM_CPUS_PER_TASK" --block & }
start "$head" --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1
sleep 20
for node in "${nodes[@]:1}"; do start "$node" --address="$address:$port"; done
sleep 20

hba run "$@" compute.address="$address:$port" &
driver=$!
trap 'kill -TERM "$driver"; wait "$driver"; scontrol requeue "$SLURM_JOB_ID"' TERM
wait "$driver"
