"""Whether a folder may become, or go on as, that of a run: nothing of the user's is overwritten there."""

from pathlib import Path

import yaml

from gspn_dit.checkpoint import RECORDS, checkpoints
from gspn_dit.config import Config, load_config, to_yaml
from gspn_dit.errors import UserError
from gspn_dit.files import refuse_inputs


def check_run_dir(config: Config) -> None:
    """Raise `UserError` for a run_dir that is an input, lies in one, or holds what is not of a training."""
    run_dir, source = Path(config.run_dir), config.train.init_from
    inputs = [("data.path", config.data.path), ("data.autoencoder", config.data.autoencoder)]
    if source:
        held = Path(source) / "checkpoints"
        inputs.append(("train.init_from", held if held.is_dir() else source))
        if held.is_dir() and run_dir.exists() and run_dir.samefile(source):
            raise UserError(f"run_dir {run_dir} is train.init_from itself: give a new run another folder")
    refuse_inputs("run_dir", run_dir, [(name, path) for name, path in inputs if path])
    for name, what in (("state.json", "a released model or a checkpoint"), ("manifest.json", "latents")):
        if (run_dir / name).exists():
            raise UserError(f"run_dir {run_dir} holds {what} ({name}): choose another folder")
    if begun(run_dir):
        return
    for name in RECORDS:
        if (run_dir / name).exists():
            raise UserError(
                f"run_dir {run_dir} holds {name} and no run: training would overwrite it; choose another folder"
            )


def begun(run_dir: Path) -> bool:
    """Whether a folder is that of a run: one with checkpoints or metrics, or killed before it had any."""
    if checkpoints(run_dir) or (run_dir / "metrics.jsonl").exists():
        return True
    written = run_dir / "config.yaml"
    try:
        return written.read_text(encoding="utf-8") == to_yaml(load_config(written))
    except (OSError, UserError, UnicodeDecodeError, yaml.YAMLError):
        return False
