"""What benchmarks/gpu.sh found, as one JSON file: gpu_report.py WORK OUT."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_tutorial.core.atomic import read_json, write_json
from vision_tutorial.core.errors import UserError, run_main
from vision_tutorial.runs import run_folder
from vision_tutorial.runs.fingerprint import fingerprint

KEPT = ("epoch", "seconds", "seconds_data", "seconds_eval", "images_per_second", "val/top1")
MACHINE = ("cpu", "memory_bytes", "system", "python", "torch", "git")


def main(argv: Sequence[str]) -> int:
    """Write OUT/gpu.json; 0 if every phase ended well."""
    work, out = Path(argv[0]), Path(argv[1])
    phases: dict[str, dict[str, Any]] = {}
    for line in (work / "phases").read_text().splitlines():
        name, code, seconds = line.split()
        phases[name] = {"exit_code": int(code), "seconds": int(seconds)}
        if found := json_or_none(work / f"{name}.json"):
            phases[name]["found"] = found
    runs = {path.name: trained(path) for path in sorted((work / "runs").glob("*"))}
    # theirs name the GPUs; this process has no torch to ask
    known = [json_or_none(Path(run["run"]) / "fingerprint.json") for run in runs.values() if run]
    known += [phase["found"] for phase in phases.values() if "machine" in phase.get("found", {})]
    here = next(filter(None, known), None) or fingerprint()
    here = here.get("machine", {}) | here
    found = {
        "created": fingerprint()["created"],
        "all_data": (work / "set" / "arrays.json").exists(),
        "phases": phases,
        "machine": {key: here.get(key) for key in MACHINE},
        "versions": here["versions"],
        "parity": parity(work / "parity.txt"),
        "runs": {name: run for name, run in runs.items() if run},
    }
    write_json(out / "gpu.json", found)
    print(summary(found, out / "gpu.json"))
    return int(any(phase["exit_code"] for phase in phases.values()))


def parity(path: Path) -> str | None:
    """The last line that pytest wrote."""
    lines = path.read_text().split("\n") if path.exists() else []
    return next((line for line in reversed(lines) if line.strip()), None)


def json_or_none(path: Path) -> Any:
    """What a file holds, if it is there and whole."""
    try:
        return read_json(path)
    except UserError:
        return None


def trained(folder: Path) -> dict[str, Any] | None:
    """The newest run: its epochs, and what they come to."""
    found = sorted(folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    run = found[-1].parent
    rows = run_folder.read_rows(run / "metrics.jsonl")
    summary = json_or_none(run / "summary.json") or {}
    # the first epoch compiles and warms up
    steady = rows[1:] or rows
    return {
        "run": str(run),
        "status": (json_or_none(run / "status.json") or {}).get("status"),
        "epochs_done": rows[-1]["epoch"] if rows else 0,
        "best": summary.get("best"),
        "expects": summary.get("expects"),
        "median_seconds_per_epoch": median(steady, "seconds"),
        "median_images_per_second": median(steady, "images_per_second"),
        "epochs": [{key: row.get(key) for key in KEPT} for row in rows],
    }


def median(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """The middle of one column."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return round(statistics.median(values), 4) if values else None


def summary(found: dict[str, Any], path: Path) -> str:
    """A few lines for people."""
    lines = [
        f"{name}: exit {phase['exit_code']}, {phase['seconds']} s"
        for name, phase in found["phases"].items()
    ]
    for name, run in found["runs"].items():
        if run["epochs"]:
            lines.append(
                f"{name}: {run['epochs_done']} epochs, {run['median_seconds_per_epoch']} s each, "
                f"{run['median_images_per_second']:,} images/s, "
                f"top-1 {run['epochs'][-1]['val/top1']}"
            )
    return "\n".join([*lines, f"results: {path}"])


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
