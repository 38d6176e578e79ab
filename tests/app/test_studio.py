"""Pictures in the making and the finished one, without a page."""

import socket

import numpy as np
import pytest
import torch

from gspn_dit.app import __main__ as command
from gspn_dit.app.studio import Studio, read_names
from gspn_dit.diffusion import create_diffusion, keyed_noise, sample
from gspn_dit.errors import UserError
from gspn_dit.sampling.grids import GRID_BORDER
from tests.sampling.conftest import make_run

CHOICES = {"cfg_scale": 2.0, "steps": 3, "sampler": "heun", "seed": 5, "height": 32, "width": 32}


def studio_of(run) -> Studio:
    return Studio(str(run), vae=None, ema=True, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return studio_of(make_run(tmp_path_factory.mktemp("app") / "run"))


def test_the_last_picture_is_what_sample_py_draws(studio):
    """Two images of class 3: those of the same seed, numbers and labels."""
    pictures = list(studio.draw(3, 2, **CHOICES))
    image, word = pictures[-1]
    assert word == "seed 5, done"
    resolved = studio.resolve(cfg_scale=2.0, steps=3, sampler="heun", seed=5)
    batches = resolved.generate(
        studio.model, studio.autoencoder, torch.tensor([3, 3]), torch.arange(2), torch.device("cpu")
    )
    expected = torch.cat([images for _, images in batches]).numpy()
    side = 32 + GRID_BORDER
    assert image.shape == (side + GRID_BORDER, 2 * side + GRID_BORDER, 3)
    for i in range(2):
        left = i * side + GRID_BORDER
        assert np.array_equal(image[GRID_BORDER:side, left : left + 32], expected[i])


def test_pictures_come_while_it_is_denoised(studio):
    first, word = next(studio.draw(3, 1, **CHOICES))
    assert word.endswith("%")
    assert first.shape == (36, 36, 3)


def test_who_leaves_early_stops_the_work(studio):
    calls = []
    studio.model.register_forward_pre_hook(lambda *_: calls.append(1))
    pictures = studio.draw(3, 1, **{**CHOICES, "steps": 5000})
    next(pictures)
    pictures.close()  # waits for the thread
    assert 0 < len(calls) < 5000


def test_stop_ends_the_work_of_its_asker_alone(studio):
    pictures = studio.draw(3, 1, **{**CHOICES, "steps": 5000}, who="one")
    next(pictures)
    studio.stop("another")
    next(pictures)
    studio.stop("one")
    words = [word for _, word in pictures]
    assert all(word.endswith("%") for word in words)
    assert not studio.stopping


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": 33}, "expected multiples of 8"),
        ({"width": 0}, "expected pixels"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg_scale": 0.5}, "cfg_scale is 0.5"),
        ({"sampler": "ddpm"}, "expected one of heun, euler"),
    ],
)
def test_bad_choices_are_refused_before_any_work(studio, changed, message):
    with pytest.raises(UserError, match=message):
        studio.draw(0, 1, **{**CHOICES, **changed})


@pytest.mark.parametrize(("label", "count"), [(10, 1), (0, 0), (0, 65)])
def test_classes_and_counts_that_cannot_be(studio, label, count):
    with pytest.raises(UserError, match=r"classes 0 to 9|expected 1 to 64"):
        studio.draw(label, count, **CHOICES)


def test_another_size_of_a_network_with_positions_is_refused(tmp_path):
    fixed = studio_of(make_run(tmp_path / "run", position="sincos"))
    assert not fixed.any_size
    with pytest.raises(UserError, match="networks without positions"):
        fixed.draw(0, 1, **{**CHOICES, "width": 64})


def test_what_is_not_finite_is_an_error(tmp_path):
    broken = studio_of(make_run(tmp_path / "run"))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"image 0 .class 2."):
        list(broken.draw(2, 1, **CHOICES))


def test_classes_have_the_names_of_the_data(studio):
    class State:
        num_classes = 3

        def __init__(self, names):
            self.state = {"dataset": {"class_names": names}}

    assert read_names(State(["a", "b", "c"])) == ["a", "b", "c"]
    assert read_names(State([])) == ["class 0", "class 1", "class 2"]
    imagenet = State([f"n{i:08}" for i in range(1000)])
    imagenet.num_classes = 1000
    assert read_names(imagenet)[207] == "golden retriever"


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_estimate_of_the_exact_prediction_is_the_data(objective):
    """A network that knows x_0: what `watch` sees is x_0 at every call."""
    diffusion = create_diffusion(objective)
    x0 = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    class Knows(torch.nn.Module):
        num_classes = 2

        def forward(self, x, t, y):
            time = float(t[0])
            if objective == "flow":
                return (x - x0) / max(time, 1e-3)
            s = diffusion.schedule
            eps = (x - float(s.signal[int(time)]) * x0) / float(s.noise[int(time)])
            return torch.cat([eps, torch.zeros_like(eps)], dim=1)

    seen = []
    sampler = {"flow": "euler", "ddpm": "ddim"}[objective]
    noise = keyed_noise(0, [0], (2, 8, 8))
    sample(Knows(), diffusion, torch.tensor([0]), noise, sampler=sampler, steps=4, watch=seen.append)
    assert len(seen) == 4
    for estimate in seen:
        torch.testing.assert_close(estimate, x0, atol=2e-3, rtol=0)


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve at 127.0.0.1:{port} .*another --port"):
            command.main(["no_such_run", "--port", str(port)])
    with pytest.raises(UserError, match="expected 1 to 65535"):
        command.main(["no_such_run", "--port", "0"])


def test_a_missing_gradio_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package gradio: .*pip install"):
        command.main(["no_such_run", "--port", "58123"])
