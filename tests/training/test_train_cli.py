"""train.py: mistakes end in one line and status 2."""

import errno

import pytest

import train
from gspn_dit import errors


def status_of(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        errors.run(lambda: train.main(argv))
    return caught.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: CONFIG.yaml"),
        (("nowhere.yaml",), "cannot read config nowhere.yaml"),
        (("TINY", "train.stepz=3"), "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        (("TINY", "model.name=DiT-Q/2"), "model name is 'DiT-Q/2'"),
        (("TINY", "--fast"), "unrecognized arguments: --fast"),
        (("TINY", "data.kind=latents", "data.path=/nowhere"), "/nowhere does not exist"),
        (("TINY", "run_dir=/dev/null/run"), "run_dir /dev/null/run cannot be written: /dev/null is a device"),
    ],
)
def test_mistakes(tiny_yaml, capsys, arguments, message):
    assert status_of(*(str(tiny_yaml) if argument == "TINY" else argument for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(monkeypatch, capsys, number):
    def full(argv):
        raise OSError(number, "it is full")

    monkeypatch.setattr(train, "main", full)
    assert status_of() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no space left on the disk: ")
    assert error.count("\n") == 1


def test_trains(tiny_yaml, tmp_path):
    assert train.main([str(tiny_yaml), "train.steps=1"]) == 0
    assert (tmp_path / "run/samples/final.png").is_file()


def test_help_has_an_example_and_the_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python train.py configs/demo.yaml run_dir=runs/demo" in text
    assert "train.ema_decay  (default 0.9999)" in text
