#!/usr/bin/env bash
# One GPU, one call, eight minutes: the data set from its parts, then what is worth most first: does a
# step wait for the host, rates beside the bare loop, without determinism, at 128 images, compiled (cold,
# warm, with CUDA graphs), then r4-fast and r4 for as long as the time allows. Each phase has its own limit.
# OUT/gpu.json is written anew after each, so that a call that is cut off has shown what was done till then.
#   [MINUTES=8] [OUT=benchmarks/results] [WORK=/tmp/vision_tutorial] [RECIPE=recipes/r4.yaml] \
#       [FAST=recipes/r4-fast.yaml] benchmarks/gpu.sh [PACKED] [-- key.sub=value …]
# PACKED (default benchmarks/packed) holds part-*-of-* folders, made where the data is by
#   vision-tutorial pack arrays recipes/r4.yaml set && python benchmarks/pack_parts.py pack set benchmarks/packed
# and, where packages are missing and there is no network, a folder wheels/. The parts may come in
# several calls; a call without all of them says what is missing and ends there.
# Call it again to go on: what was unpacked, what was found, and the runs with their checkpoints stay in
# WORK. They are too large for a machine that returns nothing but OUT, so there a later call goes on only
# as long as that machine keeps its WORK; on a GPU server of your own it always does. Nothing needs to be
# installed.
# REHEARSE=1 goes through all of it on a CPU, for tests: name a small RECIPE and FAST with it. PHASES
# chooses some; "parity", the tests of the device (PARITY: pytest -k), is not among the default's.
# Exit codes: 0 every phase ended well (or parts are missing still), 1 one did not, 2 wrong use.
set -uo pipefail
here="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="${WORK:-${TMPDIR:-/tmp}/vision_tutorial}"
out="${OUT:-$here/benchmarks/results}"
recipe="${RECIPE:-$here/recipes/r4.yaml}"
fast="${FAST:-$here/recipes/r4-fast.yaml}"
phases="${PHASES:-audit bench free quarter quarter_audit cold warm graphs fast train}"
minutes="${MINUTES:-8}"
packed="$here/benchmarks/packed"
if [ $# -gt 0 ] && [ "$1" != "--" ]; then
    packed="$1"
    shift
fi
[ $# -gt 0 ] && shift
set="$work/set"
spare="${SPARE:-45}" # seconds at the end for the last checkpoint and the report
SECONDS=0

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

left() {
    echo $((minutes * 60 - SECONDS))
}

# Run a phase, note how it ended and how long it took; its output goes to the terminal and to a log.
phase() {
    local name="$1" began=$SECONDS code
    shift
    echo "== $name ($(left) s left)" >&2
    "$@"
    code=$?
    echo "$name $code $((SECONDS - began))" >>"$work/phases"
    report >/dev/null
    return $code
}

report() {
    "$python" "$here/benchmarks/gpu_report.py" "$work" "$out"
}

data() {
    [ -f "$set/arrays.json" ] && return 0
    local parts=("$packed"/part-*-of-*)
    [ -d "${parts[0]}" ] || fail "no parts in $packed; see the head of this script for how to make them"
    "$python" "$here/benchmarks/pack_parts.py" unpack "${parts[@]}" --to "$set" >&2
}

# The batched path's images on this device are those on a CPU, which are Pillow's and timm's; a
# training on it gives equal bits each time. (Some of the trainings: with all, it would take minutes.)
parity() {
    (cd "$here" && VISION_TUTORIAL_ARRAYS="$set" VISION_TUTORIAL_TEST_GPU=1 \
        timeout "$(within 150)" "$python" -m pytest -o addopts="-q --import-mode=importlib" \
        tests/data/test_device.py tests/engine/test_gpu.py \
        -k "${PARITY:-not compile and not epochs}" \
        -p no:cacheprovider >"$work/parity.txt" 2>&1)
    local code=$?
    tail -n 3 "$work/parity.txt" >&2
    return $code
}

# measure NAME SECONDS [key=value …]: `bench` of the recipe, its JSON in WORK
measure() {
    local name="$1" seconds="$2"
    shift 2
    timeout "$(within "$seconds")" "$python" -m vision_tutorial bench "$recipe" "dataset=$arrays" "$@" \
        --rounds "${ROUNDS:-3}" --seconds "${PACE:-2}" --json >"$work/$name.json"
}

# audited NAME SECONDS [key=value …]: the same of gpu_audit.py
audited() {
    local name="$1" seconds="$2"
    shift 2
    timeout "$(within "$seconds")" "$python" "$here/benchmarks/gpu_audit.py" "$recipe" \
        "dataset=$arrays" "$@" --seconds "${PACE:-3}" >"$work/$name.json"
}

audit() { audited audit 60 "$@"; }
bench() { measure bench 90 "$@" --only "${STAGES:-step,eval}"; }
free() { measure free 45 "$@" deterministic=false --only step; }
quarter() { measure quarter 45 "$@" "$small" --only step; }
quarter_audit() { audited quarter_audit 45 "$@" "$small"; }
cold() { audited cold 150 "$@" compile=true; }
warm() { audited warm 90 "$@" compile=true; }
graphs() { measure graphs 90 "$@" compile=reduce-overhead "$small" --only step; }
fast() { trained "$fast" "$@"; }
train() { trained "$recipe" "$@"; }

trained() {
    local seconds=$(($(left) - spare)) which="$1"
    shift
    [ "$seconds" -gt 10 ] || return 75
    "$python" -m vision_tutorial train "$which" "dataset=$arrays" "$@" --resume \
        --runs "$work/runs" --minutes "$(awk "BEGIN {print $seconds / 60}")" >&2
}

# At most so many seconds, and never more than are left.
within() {
    local most=$(($(left) - spare))
    [ "$most" -gt "$1" ] && most="$1"
    [ "$most" -gt 1 ] && echo "$most" || echo 1
}

for name in $phases; do
    [ "$(type -t "$name")" = function ] || fail "PHASES: no phase called $name"
done
for python in python python3 "$here/.venv/bin/python" ""; do
    [ -n "$python" ] || fail "no Python with torch here; activate your environment"
    "$python" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))' \
        >/dev/null 2>&1 && break
done
[[ "$minutes" =~ ^[0-9]+$ ]] || fail "MINUTES is $minutes; a whole number is expected"
[ -f "$recipe" ] || fail "no recipe $recipe"
mkdir -p "$work" "$out" || fail "cannot write $work or $out"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" WANDB_MODE="${WANDB_MODE:-disabled}"
arrays="{arrays: {root: '$set'}}"
small="batch_size=${SMALL:-128}" # what each of four GPUs would take of r4's batch
export TORCHINDUCTOR_CACHE_DIR="$work/inductor"

if [ "${REHEARSE:-}" != 1 ]; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
        fail "needs a GPU that torch can use; REHEARSE=1 goes through it on a CPU"
fi
if [ -d "$packed/wheels" ] && [ ! -d "$work/site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" \
        "$packed"/wheels/*.whl >&2 || fail "cannot install the wheels in $packed/wheels"
fi
[ -d "$work/site" ] && export PYTHONPATH="$PYTHONPATH:$work/site"

phase data data
if [ -f "$set/arrays.json" ]; then
    for name in $phases; do
        phase "$name" "$name" "$@"
    done
fi
report
