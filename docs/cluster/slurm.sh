#!/usr/bin/env bash
# One training on several nodes under SLURM: one task a node, and torchrun starts a process a GPU.
#   sbatch --nodes 2 --gpus-per-node 4 docs/cluster/slurm.sh recipes/r4.yaml [key=value …]
# Two minutes before the time is up (or when the job is preempted) the run is saved, and the job queued
# again; it then goes on from there. Submit it from the repository, with the environment active.
#SBATCH --job-name=vision-tutorial
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
recipe="${1:?slurm.sh RECIPE [key=value …]}"
shift
runs="${RUNS:-runs}" # on a disk that all nodes see
id="job-$SLURM_JOB_ID"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it over by itself
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

# the steps get the signal, too; this shell waits for them to be saved
trap 'echo "slurm.sh: asked to stop"' TERM
srun --kill-on-bad-exit=0 python -m torch.distributed.run \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29400}" --rdzv-id "$SLURM_JOB_ID" \
    -m vision_tutorial.train "$recipe" "$@" --resume --id "$id" --runs "$runs" &
while kill -0 $! 2>/dev/null; do wait $!; done
wait $!
code=$?

# torchrun turns every exit code into 1; the run folder says what it was (143 is `preempted`). A job
# that a person has cancelled is not RUNNING any more, and stays cancelled.
if grep -qs '"preempted"' "$runs"/*/"$id"/status.json &&
    scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
    echo "slurm.sh: preempted; queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit $code
