#!/bin/sh
# torchrun for one machine, installed or not, from any folder: ./torchrun.sh --help
set -eu
here=$(cd -P "$(dirname "$0")" && pwd)

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    cat <<'HELP'
./torchrun.sh --nproc N -m vision_tutorial.train RECIPE [key=value …]

Runs torchrun with the same arguments, and
  writes --nproc N as --nproc-per-node N, which torch 2 insists on;
  adds --standalone, unless --nnodes, --rdzv-… or --master-… says where processes meet;
  sets OMP_NUM_THREADS to cores / N, unless it is set.
All options of torchrun itself: python -m torch.distributed.run --help
HELP
    [ $# -gt 0 ] || exit 2
    exit 0
fi

for python in python python3 "$here/.venv/bin/python"; do
    if "$python" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))' \
        >/dev/null 2>&1; then
        export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
        exec "$python" "$here/vision_tutorial/torchrun_nproc.py" "$@"
    fi
done
echo "torchrun.sh: no Python with torch here. Activate your environment, or: pip install -e $here" >&2
exit 2
