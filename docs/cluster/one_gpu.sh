#!/usr/bin/env bash
# Run a command on the first GPU of this machine that nobody holds; wait until one is free.
#   docs/cluster/one_gpu.sh vision-tutorial train recipes/r1.yaml
# A GPU is held by a lock on a file. The system lets go of it when the command ends, however it ends.
# All who share the machine start their trainings this way. GPUS: how many there are (default: those
# of nvidia-smi). LOCKS: a folder for the lock files (default: /tmp/one-gpu).
set -euo pipefail
[ $# -gt 0 ] || { echo "one_gpu.sh COMMAND …" >&2; exit 2; }
gpus="${GPUS:-$(nvidia-smi -L | grep -c '^GPU ')}"
locks="${LOCKS:-/tmp/one-gpu}"
mkdir -p "$locks"
chmod 1777 "$locks" 2>/dev/null || true # whoever came first made it; the others may write, too
for ((try = 0; ; try++)); do
    for ((gpu = 0; gpu < gpus; gpu++)); do
        [ -e "$locks/$gpu" ] || : >"$locks/$gpu"
        exec 9<"$locks/$gpu" # for reading: the file may be another person's
        if flock -n 9; then
            echo "one_gpu.sh: GPU $gpu" >&2
            export CUDA_VISIBLE_DEVICES="$gpu"
            exec "$@"
        fi
        exec 9<&-
    done
    [ "$try" -gt 0 ] || echo "one_gpu.sh: all $gpus GPUs are in use; waiting for one" >&2
    sleep "${WAIT:-5}"
done
