#!/usr/bin/env bash
# The Week-3 table on this machine: r4 first, then the others, each for at most MINUTES; run it again
# to go on where it stopped. Ends with one JSON object of what was reached, on standard output.
#   MINUTES=8 NPROC=1 RUNS=runs benchmarks/week3.sh [RECIPE…] [-- key.sub=value …]
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
minutes="${MINUTES:-480}"
nproc="${NPROC:-1}"
runs="${RUNS:-runs}"

recipes=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    recipes+=("$1")
    shift
done
[ $# -gt 0 ] && shift
if [ ${#recipes[@]} -eq 0 ]; then
    recipes=(r4 r0 r1 r2 r3 r5)
fi

codes=()
for name in "${recipes[@]}"; do
    "$here/torchrun.sh" --nproc "$nproc" -m vision_tutorial.train "$here/recipes/$name.yaml" \
        --resume --runs "$runs" --minutes "$minutes" "$@" >&2
    codes+=("$name=$?")
done

"$(command -v python || command -v python3)" - "$runs" "${codes[@]}" <<'PY'
import json
import sys
from pathlib import Path

runs, codes = Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:])
found = {}
for name, code in codes.items():
    folders = sorted(path.parent for path in runs.glob(f"{name}/*/fingerprint.json"))
    found[name] = {"exit_code": int(code)}
    if folders:
        run = folders[-1]
        facts = json.loads((run / "fingerprint.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[name] |= {"run": str(run), "last_row": rows[-1] if rows else None}
        summary = run / "summary.json"
        found[name] |= json.loads(summary.read_text()) if summary.exists() else {}
        found[name] |= {key: facts[key] for key in ("versions", "cpu", "torch") if key in facts}
print(json.dumps(found, indent=2))
sys.exit(any(int(code) for code in codes.values()))
PY
