"""What two runs that are the same must have in common."""

import json
from pathlib import Path


def final_state(run_dir: Path) -> dict:
    """What two runs that are the same to the bit share: tensors, by hash, and the log but its speed."""
    newest = max((run_dir / "checkpoints").glob("step_*"))
    state = json.loads((newest / "state.json").read_text())
    hashes = {name: file["sha256"] for name, file in state["files"].items() if name.endswith("safetensors")}
    return {"step": state["step"], "window": state["window"], "hashes": hashes, "log": log_rows(run_dir)}


def log_rows(run_dir: Path) -> list[dict]:
    """The rows of metrics.jsonl without what the clock decides."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
