"""From images to scores through a real InceptionV3, and eval_fid.py in process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

import eval_fid
from gspn_dit.errors import UserError
from gspn_dit.evaluation import golden, networks
from gspn_dit.evaluation.extraction import extract
from gspn_dit.evaluation.images import ArrayImages
from gspn_dit.evaluation.networks import Features, Inception
from gspn_dit.sample_file import write_samples
from tests.evaluation.conftest import random_images
from tests.evaluation.test_verdict import GOOD
from tests.sampling.conftest import make_run

ROOT = Path(eval_fid.__file__).parent
DEMO = {
    "parameters": 1,
    "training_images": 1,
    "samples": 1,
    "sampler": "heun",
    "steps": 1,
    "cfg_scale": 2.0,
    "asked_class": 1.0,
    "copies": 0.0,
    "kid": 0.0,
    "fid_real_halves": 1.0,
    "classifier_accuracy": 1.0,
}


class Pixels:
    """A network whose features are pixels: any number of images costs nothing."""

    kind, identity, published = "inception", "pixels", False

    def __call__(self, images):
        rows = torch.from_numpy(images).flatten(1).float()
        return Features(rows[:, :40] / 64, rows[:, 40:70] / 64, rows[:, 70:82] / 64)


class Two:
    """The second of two processes beside this one, whose results wait here: gathers without a launcher."""

    num_processes = 2

    def __init__(self, index, mailbox):
        self.process_index, self.mailbox = index, mailbox
        self.is_main_process = index == 0
        self.device = torch.device("cpu")

    def gather(self, rows):
        if self.process_index == 1:
            self.mailbox.append(rows)
            return rows
        return torch.cat([rows, self.mailbox.pop(0)])


def score(*arguments) -> dict:
    path = Path(arguments[-1])
    assert eval_fid.main([*map(str, arguments[:-1]), "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_inception_is_torch_fidelitys_and_its_map_is_channel_last(inception_weights):
    network = Inception(inception_weights, "cpu")
    images = random_images(2, 0)
    features = network(images)
    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    maps = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: maps.append(output))
    pool, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(features.pool, pool) and torch.equal(features.logits, logits)
    assert maps[0].shape == (2, 192, 17, 17) and features.spatial.shape == (2, 2023)
    for y, x, channel in ((0, 0, 6), (3, 16, 2), (16, 16, 0)):
        assert torch.equal(features.spatial[:, (y * 17 + x) * 7 + channel], maps[0][:, channel, y, x])
    alone = torch.cat([network(images[:1]).pool, network(images[1:]).pool])
    torch.testing.assert_close(alone, pool, rtol=1e-3, atol=1e-5)
    assert not network.published


def test_statistics_do_not_depend_on_the_batch_size(accelerator):
    images = ArrayImages(random_images(50, 0), "random")
    one, many = (extract(images, Pixels(), accelerator, batch_size=size) for size in (1, 50))
    np.testing.assert_allclose(one.pool.covariance, many.pool.covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.spatial.mean, many.spatial.mean, rtol=1e-9)
    assert np.array_equal(one.features, many.features) and np.array_equal(one.logits, many.logits)


@pytest.mark.parametrize(("count", "batch_size"), [(50, 8), (33, 8), (8, 8), (3, 8), (17, 1)])
def test_two_processes_gather_by_number(count, batch_size, accelerator):
    images = ArrayImages(random_images(count, 0), "random")
    mailbox: list = []
    assert extract(images, Pixels(), Two(1, mailbox), batch_size=batch_size) is None
    two = extract(images, Pixels(), Two(0, mailbox), batch_size=batch_size)
    one = extract(images, Pixels(), accelerator, batch_size=batch_size)
    assert two.count == count and np.array_equal(two.features, one.features)
    assert np.array_equal(two.logits, one.logits)
    np.testing.assert_allclose(two.spatial.covariance, one.spatial.covariance, rtol=1e-6, atol=1e-12)


def test_features_are_kept_by_number(accelerator, monkeypatch):
    monkeypatch.setattr("gspn_dit.evaluation.extraction.ROWS", 16)
    images = ArrayImages(random_images(50, 0), "random")
    kept = np.array([0, 6, 7, 31, 49])
    some = extract(images, Pixels(), accelerator, batch_size=7, kept=kept)
    whole = extract(images, Pixels(), accelerator, batch_size=7)
    assert np.array_equal(whole.features, Pixels()(images.array).pool.numpy())
    assert np.array_equal(some.features, whole.features[kept])
    np.testing.assert_allclose(some.pool.covariance, whole.pool.covariance, rtol=1e-12)


def test_features_that_are_not_finite_are_named(accelerator):
    class Broken(Pixels):
        def __call__(self, images):
            features = super().__call__(images)
            features.pool[images[:, 0, 0, 0] == 7, 3] = float("nan")
            return features

    images = random_images(20, 0)
    images[:, 0, 0, 0] = 0
    images[13, 0, 0, 0] = 7
    with pytest.raises(UserError, match="features of image 13 are not finite"):
        extract(ArrayImages(images, "random"), Broken(), accelerator, batch_size=4)


def test_the_whole_path_through_inception(inception_weights, own_cache, tmp_path, capsys):
    """Images against ADM-like statistics of the same images, then against a file of our own statistics."""
    np.savez(tmp_path / "samples.npz", arr_0=random_images(6, 0))
    np.savez(tmp_path / "real.npz", arr_0=random_images(5, 1))
    common = ("--inception-weights", inception_weights, "--batch-size", 4)
    own = tmp_path / "own.npz"
    first = score(
        tmp_path / "samples.npz",
        "--reference",
        tmp_path / "real.npz",
        "--save-reference",
        own,
        *common,
        tmp_path / "1",
    )
    assert all(first[key] is not None for key in ("fid", "sfid", "is", "precision", "recall", "kid"))
    assert first["comparable"] is False
    for reason in ("another hash", "6 samples", "VIRTUAL", "labels is not stated", "weights are averaged"):
        assert any(reason in text for text in first["reasons"]), reason
    printed = capsys.readouterr().out
    assert "not comparable with published scores" in printed and "features of the samples: " in printed
    again = score(
        tmp_path / "samples.npz",
        "--reference",
        own,
        *common,
        "--labels",
        "random",
        "--weights",
        "ema",
        tmp_path / "2",
    )
    for key in ("fid", "sfid", "is", "precision", "recall", "kid"):
        assert again[key] == pytest.approx(first[key], rel=1e-6), key
    assert (
        again["settings"]["reference_size"] == [32, 32]
        and again["settings"]["reference_kind"] == "statistics"
    )
    assert not any("stated" in reason for reason in again["reasons"])


@pytest.fixture
def pixels(monkeypatch, own_cache):
    """eval_fid.py with the pixel network in Inception's place."""
    monkeypatch.setattr("gspn_dit.evaluation.scores.create_network", lambda options, device: Pixels())


def write_adm(path, images, real):
    """Statistics in ADM's form: moments of `real`, and `images`."""
    pool, spatial = (Pixels()(real).pool.numpy(), Pixels()(real).spatial.numpy())
    arrays = {"mu": pool.mean(axis=0), "sigma": np.cov(pool, rowvar=False)}
    arrays |= {"mu_s": spatial.mean(axis=0), "sigma_s": np.cov(spatial, rowvar=False)}
    np.savez(path, arr_0=images, **arrays)


def test_adm_statistics_are_used_and_their_images_are_for_recall(pixels, tmp_path):
    real = random_images(60, 1)
    write_adm(tmp_path / "VIRTUAL_imagenet32_labeled.npz", real[:30], real)
    np.savez(tmp_path / "s.npz", arr_0=random_images(40, 0))
    reference = tmp_path / "VIRTUAL_imagenet32_labeled.npz"
    adm = score(tmp_path / "s.npz", "--reference", reference, tmp_path / "adm.json")
    np.savez(tmp_path / "all.npz", arr_0=real)
    np.savez(tmp_path / "some.npz", arr_0=real[:30])
    everything = score(tmp_path / "s.npz", "--reference", tmp_path / "all.npz", tmp_path / "all.json")
    some = score(tmp_path / "s.npz", "--reference", tmp_path / "some.npz", tmp_path / "some.json")
    assert [adm[key] for key in ("fid", "sfid")] == pytest.approx(
        [everything[key] for key in ("fid", "sfid")], rel=1e-6
    )
    assert [adm[key] for key in ("precision", "recall", "kid")] == [
        some[key] for key in ("precision", "recall", "kid")
    ]
    assert adm["fid"] != pytest.approx(some["fid"], rel=1e-3)
    assert adm["settings"]["reference_virtual"] and not everything["settings"]["reference_virtual"]


def test_a_reference_is_computed_once_by_its_contents(pixels, own_cache, tmp_path, monkeypatch):
    np.savez(tmp_path / "s.npz", arr_0=random_images(40, 0))
    np.savez(tmp_path / "a.npz", arr_0=random_images(30, 1))
    np.savez(tmp_path / "b.npz", arr_0=random_images(30, 2))
    a = score(tmp_path / "s.npz", "--reference", tmp_path / "a.npz", tmp_path / "1")
    assert len(list(own_cache.glob("reference-*.npz"))) == 1
    (tmp_path / "a.npz").rename(tmp_path / "moved.npz")
    with monkeypatch.context() as patch:
        patch.setattr("gspn_dit.evaluation.references.extract", None)
        moved = score(tmp_path / "s.npz", "--reference", tmp_path / "moved.npz", tmp_path / "2")
    assert moved["fid"] == pytest.approx(a["fid"], rel=1e-9) and moved["recall"] == a["recall"]
    b = score(tmp_path / "s.npz", "--reference", tmp_path / "b.npz", tmp_path / "3")
    assert b["fid"] != a["fid"]


def test_errors_and_infinity_are_options_and_few_images_leave_notes(pixels, tmp_path, capsys):
    np.savez(tmp_path / "s.npz", arr_0=random_images(200, 0))
    np.savez(tmp_path / "few.npz", arr_0=random_images(3, 1))
    options = ("--bootstrap", 5, "--fid-inf")
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "few.npz", *options, tmp_path / "1")
    assert result["errors"]["fid"] > 0 and np.isfinite(result["fid_inf"])
    assert result["precision"] is None and result["recall"] is None
    assert "no precision and recall: 200 samples and 3 references are too few" in capsys.readouterr().out


def test_samples_of_another_size_than_the_reference_are_scored_and_told(pixels, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=random_images(10, 0, size=16))
    np.savez(tmp_path / "r.npz", arr_0=random_images(10, 1))
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "r.npz", tmp_path / "1")
    assert "samples are 16x16, the reference's images 32x32" in result["reasons"]


def test_a_run_is_sampled_first(digit_cache, tmp_path):
    run = make_run(tmp_path / "run")
    arguments = [
        run,
        "--reference",
        "mnist",
        "--features",
        "digits",
        "--num",
        20,
        "--labels",
        "balanced",
        "--steps",
        1,
    ]
    first = score(*arguments, tmp_path / "1")
    (made,) = (run / "evaluation").glob("*.npz")
    written = made.stat().st_mtime_ns
    assert score(*arguments, tmp_path / "2")["fid"] == pytest.approx(first["fid"], rel=1e-6)
    assert made.stat().st_mtime_ns == written
    assert first["settings"]["labels"] == "balanced" and first["settings"]["ema"] is True
    assert first["sfid"] is None and first["is"] is None and first["fid"] > 0
    assert "features are of the digit classifier, not of Inception" in first["reasons"]


def test_scores_are_recorded_with_their_settings(pixels, tmp_path):
    results = tmp_path / "results"
    write_samples(
        tmp_path / "s.npz", random_images(10, 0), np.arange(10), {"checkpoint": "abc", "cfg_scale": 1.0}
    )
    np.savez(tmp_path / "r.npz", arr_0=random_images(10, 1))
    options = ("--record", "--results", results)
    result = score(tmp_path / "s.npz", "--reference", tmp_path / "r.npz", *options, tmp_path / "1")
    (entry,) = json.loads((results / "leaderboard.json").read_text())
    assert entry == result and entry["settings"]["checkpoint"] == "abc"


def test_demo_runs_side_by_side(tmp_path, capsys):
    for name, fid in (("a", 1.25), ("b", 7.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps({**DEMO, "model": name, "fid": fid}))
    assert eval_fid.main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "FID to held-out" in line)
    assert line.split()[-2:] == ["1.25", "7.50"]
    with pytest.raises(UserError, match="train the run to its end first"):
        eval_fid.main(["--compare", str(tmp_path)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give SAMPLES and --reference REF"),
        ("s.npz", "give SAMPLES and --reference REF"),
        ("absent --reference r.npz", "no such samples: absent"),
        ("s.npz --reference absent.npz", "no such reference: absent.npz"),
        ("s.npz --reference r.npz --batch-size 0", "--batch-size 0: expected at least 1"),
        ("s.npz --reference r.npz --bootstrap 1", "--bootstrap 1: expected 0, or at least 2"),
        ("s.npz --reference r.npz --json no/such/folder.json", "its folder does not exist"),
        ("s.npz --reference r.npz --save-reference r.zip", "expected a name that ends in .npz"),
        ("s.npz --reference r.npz --features digits --record", "the leaderboard is of Inception's scores"),
        ("s.npz --reference r.npz --steps 5", "--steps is for a run"),
        ("s.npz --reference r.npz --inception-weights absent", "--inception-weights absent: no such file"),
        ("s.npz --reference r.npz --inception-weights text", "cannot be read as weights"),
        ("s.npz --reference r.npz --inception-weights other.pth", "are not weights of torch-fidelity's"),
        ("s.npz --reference bad.npz", "mu is (3,) and sigma (2, 2); expected (d,) and (d, d)"),
        ("s.npz --reference nan.npz", "mu or sigma is not finite"),
        ("s.npz --reference r.npz --features vgg", "invalid choice: 'vgg'"),
        ("--golden .", "VIRTUAL_imagenet256_labeled.npz: download https://"),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", arr_0=random_images(4, 0))
    np.savez("r.npz", arr_0=random_images(4, 1))
    np.savez("bad.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez("nan.npz", mu=np.full(2, np.nan), sigma=np.eye(2))
    Path("text").write_text("no weights")
    torch.save({"weight": torch.zeros(2)}, "other.pth")
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        eval_fid.main(options.split())
    assert message in str(caught.value)


def test_bad_input_for_a_run_is_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    for options, message in (
        ("--preset paper --steps 50", "--steps 50: --preset paper pins it to 250"),
        ("--preset paper --weights last", "pins it to ema"),
        ("--preset paper", "sampler is 'ddpm'; expected one of heun, euler for a flow model"),
        ("--cfg-scale 0.9", "--cfg-scale 0.9: expected 1.0"),
        ("--num 1", "--num 1: expected at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            eval_fid.main([str(run), "--reference", "mnist", *options.split()])


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(no route to host\): fetch https://.*--inception-weights"
    ):
        networks.find_weights(None)


def test_the_golden_numbers_agree_or_differ():
    near = {name: value * 1.005 for name, value in golden.PUBLISHED.items()}
    assert golden.compare(near)[1]
    table, agreed = golden.compare({**near, "sfid": 299.0})
    assert not agreed and "differs" in next(line for line in table.splitlines() if line.startswith("sfid"))


def test_a_good_sample_file_would_be_comparable():
    """The verdict reads the keys that the scores write."""
    from gspn_dit.evaluation import scores

    assert set(GOOD) - {"features", "inception_published"} <= {
        *scores.STATED, "samples", "sample_size", "lossy", "reference_virtual", "reference_size"
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_score_as_one_does(inception_weights, own_cache, tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=random_images(11, 0))
    np.savez(tmp_path / "r.npz", arr_0=random_images(9, 1))
    common = [tmp_path / "s.npz", "--reference", tmp_path / "r.npz", "--inception-weights", inception_weights]
    one = score(*common, "--batch-size", 2, tmp_path / "one.json")
    for file in own_cache.iterdir():
        file.unlink()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    arguments = [*map(str, common), "--batch-size", "2", "--json", str(tmp_path / "two.json")]
    done = subprocess.run(
        [*launch, str(ROOT / "eval_fid.py"), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    for key in ("fid", "sfid", "is", "precision", "recall", "kid"):
        assert two[key] == pytest.approx(one[key], rel=1e-6), key
