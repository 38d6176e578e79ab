"""The config: what is read, and what a mistake in it says."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from gspn_dit import config as config_module
from gspn_dit import schema
from gspn_dit.config import Config, ModelConfig, load_config, save_config
from gspn_dit.errors import UserError
from gspn_dit.models.settings import ModelSettings
from gspn_dit.schema import Place, field_docs, flatten, help_text


def test_reads_types_and_overrides(tiny_yaml):
    config = load_config(
        tiny_yaml,
        ["train.learning_rate=1e-4", "train.betas=[0.9, 0.95]", "train.clip=null", "sample.classes=[3,4]"],
    )
    assert config.train.learning_rate == 1e-4
    assert config.train.betas == (0.9, 0.95)
    assert config.train.clip is None
    assert config.sample.classes == (3, 4)
    assert config.train.batch_size == 8


def test_saved_config_reads_back_equal(tiny_yaml, tmp_path):
    presets = "memory_presets={small: {micro_batch: 2, checkpoint_activations: true}}"
    config = load_config(tiny_yaml, [presets, "train.memory=small", "sample.cfg_interval=[0.1, 0.9]"])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_frozen(tiny_yaml):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(tiny_yaml).train.steps = 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?"),
        ("trian.steps=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.steps=[1", "train.steps: '[1' is not a YAML value (expected ',' or ']'"),
        ("train={steps: 1, steps: 2}", "key 'steps' stands twice in line 1: remove one"),
        ("train.steps=many", "train.steps: expected an integer, got 'many'"),
        ("train.steps=true", "train.steps: expected an integer, got True"),
        ("train.steps=2.5", "train.steps: expected an integer, got 2.5"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, got 'fast'"),
        ("train.compile=1", "train.compile: expected true or false, got 1"),
        ("train.precision=fp16", "train.precision: expected one of fp32, bf16, got 'fp16'"),
        ("train.betas=[0.9]", "train.betas: expected a list of 2, each a number, got [0.9]"),
        ("train=3", "train: expected a mapping of keys, got 3"),
        ("data.kind=null", "data.kind: expected one of mnist, latents, images, got None"),
        ("train.steps=0", "train.steps: expected at least 1, got 0"),
        ("train.seed=-1", "train.seed: expected from 0 to 2**63 - 1, got -1"),
        ("train.seed=9223372036854775808", "train.seed: expected from 0 to 2**63 - 1, got 9223"),
        ("train.weight_decay=.inf", "train.weight_decay: expected a finite number, at least 0, got inf"),
        ("train.learning_rate=.inf", "train.learning_rate: expected a finite number, at least 0, got inf"),
        ("train.min_learning_rate=.nan", "train.min_learning_rate: expected a finite number"),
        ("sample.cfg_scale=0.5", "sample.cfg_scale: expected at least 1.0 (1.0 is no guidance), got 0.5"),
        ("sample.cfg_interval=[0.8, 0.2]", "sample.cfg_interval: expected [low, high]"),
        ("train.micro_batch=3", "train.micro_batch: expected a divisor of train.batch_size, 8, got 3"),
        ("train.memory=80gb", "train.memory: no preset '80gb'"),
        ("data.kind=latents", "data.path: expected the folder that encode_latents.py made, got null"),
        ("data.kind=images", "data.path: expected a folder of images, got null"),
        ("data={kind: images, path: x}", "data.size: expected the side of the pixels, such as 32, got null"),
        ("data={kind: images, path: x, size: 0}", "data.size: expected at least 1, or null, got 0"),
        (
            "data={kind: images, path: x, size: 8, autoencoder: y}",
            "data.autoencoder: expected null for pixels, got 'y'",
        ),
        ("data.validation=x", "data.validation: expected null but for latents, got 'x'"),
        ("data={kind: images, path: x, size: 8, tuning: true}", "data.tuning: expected false but for mnist"),
        ("data={kind: latents, path: x, validation: x}", "data.validation: expected other latents"),
        ("train.validate_every=-1", "train.validate_every: expected at least 0, got -1"),
        ("data.held_out=1", "data.held_out: expected in [0, 1), got 1.0"),
    ],
)
def test_mistakes_are_named(tiny_yaml, override, message):
    with pytest.raises(UserError) as caught:
        load_config(tiny_yaml, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.steps.x=3"])
def test_malformed_override(tiny_yaml, override):
    with pytest.raises(UserError, match="override"):
        load_config(tiny_yaml, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("- 1\n", "holds list"),
        ("a: [1", "not valid YAML"),
        ("run_dir: x\n", "missing key 'model'"),
        ("run_dir: x\nmodel:\n  name: a\n\n  name: b\n", "key 'name' stands in line 3 and again in line 5"),
        ("train: {steps: 1, steps: 2}\n", "key 'steps' stands twice in line 1"),
        ("? [a]\n: 1\n", "line 1: a key that is a list"),
        ("5\n", "holds int"),
        ("\x93NUMPY\x01", "it is a .npy, one array of numpy"),
    ],
)
def test_broken_file(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_key_that_a_merge_brings_may_be_given_again(tiny_yaml):
    text = "base: &base {steps: 1, batch_size: 8}\nmore: &more {<<: *base, steps: 2}\nlast: {<<: *more, steps: 3}\n"
    read = schema.parse(text)
    assert [read[key]["steps"].value for key in ("base", "more", "last")] == [1, 2, 3]


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match=f"cannot read config {tmp_path}: it is a folder; see configs/"):
        load_config(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")


def test_memory_preset_fills_what_is_unset(tiny_yaml):
    presets = "memory_presets={small: {micro_batch: 2, checkpoint_activations: true}}"
    config = load_config(tiny_yaml, [presets, "train.memory=small"])
    assert (config.train.micro_batch, config.model.checkpoint_activations) == (2, True)
    assert (
        load_config(tiny_yaml, [presets, "train.memory=small", "train.micro_batch=4"]).train.micro_batch == 4
    )
    assert load_config(tiny_yaml, [presets]).train.micro_batch is None


def test_model_keys_are_those_of_the_models():
    known = {field.name for field in dataclasses.fields(ModelSettings)}
    chosen_by_data = {"input_size", "in_channels", "num_classes", "learn_sigma"}
    assert {field.name for field in dataclasses.fields(ModelConfig)} == known - chosen_by_data


def test_every_field_is_documented():
    classes = [value for value in vars(config_module).values() if dataclasses.is_dataclass(value)]
    assert len(classes) >= 8
    for cls in classes:
        undocumented = {field.name for field in dataclasses.fields(cls)} - set(field_docs(cls))
        sections = {field.name for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)}
        assert undocumented == sections


def test_help_lists_every_key(tiny_yaml):
    text = help_text(Config)
    for key, _ in flatten(load_config(tiny_yaml)):
        assert f"  {key}  (" in text
    assert "train.learning_rate  (default 0.0001)" in text
    for key, value in flatten(load_config(tiny_yaml)):  # 1 is not true, and 0 not false
        if key in ("train.clip", "train.seed", "sample.cfg_scale", "train.validate_every"):
            assert f"  {key}  (default {value})" in text and not isinstance(value, bool)
    assert "  data.flip  (default true)" in text and "  model.width  (default null)" in text


def test_a_bad_config_is_rejected_without_torch(tiny_yaml):
    program = (
        "import sys; from gspn_dit.config import load_config; load_config(sys.argv[1]);"
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, tiny_yaml], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"


def test_yaml_of_a_preset_is_plain(tiny_yaml, tmp_path):
    save_config(load_config(tiny_yaml, ["sample.classes=[1, 2]"]), tmp_path / "saved.yaml")
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["sample"]["classes"] == [1, 2]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2024", "2024"),
        ("1e3", "1e3"),
        ("1.50", "1.50"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("2024-01-02", "2024-01-02"),
        ("2024-13-45", "2024-13-45"),
        ("null", None),
        ("", None),
        ("~/x", "/home/me/x"),
    ],
)
def test_a_string_is_taken_as_it_is_written(written, read, tiny_yaml, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load_config(tiny_yaml, [f"data.path={written}"]).data.path == read
    content = tiny_yaml.read_text().replace("kind: mnist", f"kind: mnist\n  path: {written}")
    tiny_yaml.write_text(content)
    config = load_config(tiny_yaml)
    assert config.data.path == read
    save_config(config, tiny_yaml)
    assert load_config(tiny_yaml) == config


@pytest.mark.parametrize("written", ["a: b", "[x]", "{a: 1}", "#1", "x #y", "%x", "@x", "'", "a b "])
def test_an_override_of_a_string_needs_no_quotes(written, tiny_yaml):
    assert load_config(tiny_yaml, [f"data.path={written}"]).data.path == written
    assert load_config(tiny_yaml, ["data.path='quoted'"]).data.path == "quoted"


def test_every_path_of_a_config_takes_a_tilde(tiny_yaml, monkeypatch):
    """Strings whose description speaks of a folder."""
    monkeypatch.setenv("HOME", "/home/me")
    sections = {field.name + ".": field.type for field in dataclasses.fields(Config)} | {"": Config}
    paths = [
        prefix + field.name
        for prefix, cls in sections.items()
        if dataclasses.is_dataclass(cls)
        for field in dataclasses.fields(cls)
        if field.type in (str, str | None, Place, Place | None)
        and "folder" in field_docs(cls)[field.name].lower()
    ]
    assert {"run_dir", "data.path", "data.autoencoder", "train.init_from"} <= set(paths)
    for key in paths:
        config = load_config(tiny_yaml, ["data.kind=latents", "data.path=x", f"{key}=~/x"])
        assert dict(flatten(config))[key] == "/home/me/x"
    with pytest.raises(UserError, match="run_dir ~nobody9/x: ~nobody9 is nobody's home here"):
        load_config(tiny_yaml, ["run_dir=~nobody9/x"])
