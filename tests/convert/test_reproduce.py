"""What `make golden-dit` says and does, on small weights under the published names."""

import shlex
from pathlib import Path

import pytest
import torch

from eval_fid import RESULTS
from gspn_dit.convert import reproduce
from gspn_dit.convert.reproduce import main
from gspn_dit.errors import UserError
from gspn_dit.evaluation.arguments import parse_arguments
from gspn_dit.evaluation.golden import REFERENCE
from gspn_dit.hub import from_pretrained
from tests.convert.published import PublishedDiT
from tests.test_configs import make


def save_weights(folder, monkeypatch) -> None:
    """A DiT of S's width, which tells its heads."""
    for name, value in {"WIDTH": 384, "HEADS": 6, "DEPTH": 1}.items():
        monkeypatch.setattr(f"tests.convert.published.{name}", value)
    torch.save(PublishedDiT().state_dict(), folder / "DiT-XL-2-256x256.pt")


def test_without_files_one_message_says_what_to_get_and_where(tmp_path):
    with pytest.raises(UserError) as error:
        main([str(tmp_path / "golden")])
    message = str(error.value)
    for needed in (
        REFERENCE,
        "DiT-XL-2-256x256.pt",
        "SiT-XL-2-256.pt",
        f"{tmp_path}/golden",
        "one of the weights",
    ):
        assert needed in message
    assert "\n" not in message


def test_a_missing_reference_is_said_before_the_conversion(tmp_path, monkeypatch):
    save_weights(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=REFERENCE) as error:
        main([str(tmp_path)])
    assert "DiT-XL" not in str(error.value)
    assert not (tmp_path / "dit_xl2").exists()


def test_converts_once_and_prints_commands_with_what_was_published(tmp_path, monkeypatch, capsys):
    save_weights(tmp_path, monkeypatch)
    (tmp_path / REFERENCE).touch()
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "released to" in printed
    for number in ("9.62", "2.27", "2.20", "not yet measured"):
        assert number in printed
    assert "SiT" not in printed
    assert from_pretrained(tmp_path / "dit_xl2").settings.heads == 6
    commands = [line.split("eval_fid.py ")[1] for line in printed.splitlines() if "eval_fid.py" in line]
    asked = [parse_arguments(shlex.split(command), RESULTS) for command in commands]
    assert [(item.samples, item.cfg_scale) for item in asked] == [
        (str(tmp_path / "dit_xl2"), 1.0),
        (str(tmp_path / "dit_xl2"), 1.375),
    ]
    assert main([str(tmp_path)]) == 0
    assert "released to" not in capsys.readouterr().out


def test_all_published_numbers_are_there():
    text = "\n".join(line for item in reproduce.PUBLISHED for line in reproduce.describe(Path("data"), item))
    assert all(number in text for number in ("9.62", "2.27", "8.3", "2.06"))


def test_the_target_of_make():
    command = [".venv/bin/python", "-m", "gspn_dit.convert.reproduce"]
    assert make("golden-dit") == [*command, "data/golden"]
    assert make("golden-dit", "GOLDEN=elsewhere") == [*command, "elsewhere"]
