"""The networks: shapes, initial state, training through them, memory and compilation."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from gspn_dit.models import create_model
from gspn_dit.models.networks import DiTBlock, GSPNBlock

FAMILIES = ("GSPN-S/4", "GSPN-DiT-S/4", "DiT-S/4")
TINY = {"input_size": 16, "in_channels": 3, "num_classes": 5, "width": 32, "depth": 2}


def build(name, **overrides):
    """A tiny model away from its initial state, where zero-initialised layers would hide the others."""
    torch.manual_seed(0)
    model = create_model(name, **{**TINY, **overrides})
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, size, size, generator=generator)
    return x, torch.tensor([3.0, 700.0]), torch.tensor([0, 5])


def blocks(model):
    return [module for module in model.modules() if isinstance(module, DiTBlock | GSPNBlock)]


@pytest.mark.parametrize("position", ["none", "sincos", "learned"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_learns(name, position, device):
    model = build(name, position=position).to(device)
    out = model(*(tensor.to(device) for tensor in batch()))
    assert out.shape == (2, 6, 16, 16)
    out.square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fresh_model_is_zero_and_its_blocks_are_the_identity(name):
    model = create_model(name, **TINY, learn_sigma=False)
    seen = []
    for block in blocks(model):
        block.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    assert torch.equal(model(*batch()), torch.zeros(2, 3, 16, 16))
    assert len(seen) == model.settings.block_count
    for x, out in seen:
        assert x.abs().max() > 0
        assert torch.equal(x, out)


@pytest.mark.parametrize("name", FAMILIES)
def test_time_label_and_place_matter(name):
    model = build(name)
    x, t, y = batch()
    out = model(x, t, y)
    assert not torch.allclose(out, model(x, t + 50, y))
    assert not torch.allclose(out, model(x, t, y.flip(0)))
    assert not torch.allclose(out, model(x.roll(4, dims=3), t, y).roll(-4, dims=3))


def test_flow_time_reaches_the_embedding_at_the_scale_of_ddpm_time():
    flow, ddpm = (build("DiT-S/4", learn_sigma=learned).embed_time for learned in (False, True))
    flow.load_state_dict(ddpm.state_dict())
    torch.testing.assert_close(flow(torch.tensor([0.25])), ddpm(torch.tensor([250.0])))


def test_without_positional_embedding_any_grid_fits():
    model = build("GSPN-DiT-S/4")
    x, t, y = batch(24)
    assert model(x, t, y).shape == (2, 6, 24, 24)


@pytest.mark.parametrize(
    ("position", "shape", "expected"),
    [
        ("none", (2, 4, 16, 16), r"x has shape \(2, 4, 16, 16\); expected \(B, 3, H, W\)"),
        ("none", (2, 3, 16, 18), r"expected \(B, 3, H, W\) with H and W multiples of 4"),
        ("sincos", (2, 3, 24, 24), r"x has shape \(2, 3, 24, 24\); expected \(B, 3, 16, 16\)"),
    ],
)
def test_wrong_input_is_named(position, shape, expected):
    with pytest.raises(ValueError, match=expected):
        build("GSPN-DiT-S/4", position=position)(torch.zeros(shape), torch.zeros(2), torch.zeros(2).long())


WRONG = {
    "x a list": ({"x": [1.0]}, "x is a list; expected a tensor (B, C, H, W)"),
    "x of whole numbers": ({"x": torch.zeros(2, 3, 16, 16).long()}, "x is torch.int64; expected"),
    "x one image": ({"x": torch.zeros(3, 16, 16)}, "x has shape (3, 16, 16)"),
    "t a number": ({"t": 0.5}, "t is a float; expected a tensor (2,)"),
    "t of no axis": ({"t": torch.tensor(0.5)}, "t has shape (); expected (B,) = (2,)"),
    "t of one": ({"t": torch.zeros(1)}, "t has shape (1,); expected (B,) = (2,)"),
    "t of an axis too many": ({"t": torch.zeros(2, 1)}, "t has shape (2, 1)"),
    "t truths": ({"t": torch.ones(2).bool()}, "t is torch.bool; expected real numbers"),
    "y a number": ({"y": 3}, "y is a int; expected a tensor (2,)"),
    "y too long": ({"y": torch.zeros(3).long()}, "y has shape (3,); expected (B,) = (2,)"),
    "y floating": ({"y": torch.zeros(2)}, "y is torch.float32; expected labels as int64"),
    "y below": ({"y": torch.tensor([0, -1])}, "y holds -1; expected 0 to 4, or 5 for no class"),
    "y above": ({"y": torch.tensor([6, 0])}, "y holds 6; expected 0 to 4, or 5 for no class"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_cannot_be_are_named(case):
    changed, message = WRONG[case]
    arguments = dict(zip("xty", batch(), strict=True)) | changed
    with pytest.raises(ValueError, match=re.escape(message)):
        build("DiT-S/4", position="none")(**arguments)


def test_what_fits_is_taken():
    model = build("DiT-S/4")
    x, t, y = batch()
    expected = model(x, t, y)
    torch.testing.assert_close(model(x, t.long(), y.int()), expected)
    assert model(x[:0], t[:0], y[:0]).shape == (0, 6, 16, 16)


@pytest.mark.parametrize("way", ["meta", "fake", "make_fx", "export", "vmap"])
def test_labels_are_not_looked_at_where_there_are_none(way):
    """Neither without values, nor in a trace, in which the check of one batch's labels would be baked."""
    model = build("DiT-S/4").eval()
    if way == "meta":
        assert model.to("meta")(*(tensor.to("meta") for tensor in batch())).is_meta
    elif way == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            inputs = [mode.from_tensor(tensor) for tensor in batch()]
            assert model(*inputs).shape == model(*inputs[:2], batch()[2]).shape == (2, 6, 16, 16)
    elif way == "make_fx":
        make_fx(model)(batch()[0], batch()[1], torch.tensor([0, 99]) * 0)
    elif way == "export":
        exported = torch.export.export(model, batch()).module()
        torch.testing.assert_close(exported(*batch()), model(*batch()))
    else:
        one = torch.func.vmap(lambda x, t, y: model(x[None], t[None], y[None])[0])
        torch.testing.assert_close(one(*batch()), model(*batch()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(name):
    plain, saving = build(name), build(name, checkpoint_activations=True)
    calls = count_mixer_calls(saving)
    for model in (plain, saving):
        model(*batch()).square().mean().backward()
    assert calls[0] == 2 * saving.settings.block_count
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key


def count_mixer_calls(model):
    calls = [0]

    def count(*_):
        calls[0] += 1

    for block in blocks(model):
        block.mixer.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_keeps_the_residual_stream_in_float32(name, device):
    model = build(name).to(device)
    inputs = [tensor.to(device) for tensor in batch()]
    seen = []
    for block in blocks(model):
        block.register_forward_hook(lambda _, inputs, out: seen.extend((inputs[0].dtype, out.dtype)))
    exact = model(*inputs)
    with torch.autocast(device, torch.bfloat16):
        rounded = model(*inputs)
    assert set(seen) == {torch.float32}
    assert 0 < (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
    rounded.float().square().mean().backward()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_from_meta_is_completed_by_its_initialisation(name):
    with torch.device("meta"):
        model = create_model(name, **TINY, position="sincos")
    model.to_empty(device="cpu")
    for tensor in model.state_dict(keep_vars=True).values():
        tensor.data.fill_(torch.nan)
    model.embed_position.table.fill_(torch.nan)
    direct = create_model(name, **TINY, position="sincos")
    for built in (model, direct):
        torch.manual_seed(0)
        built.initialize_weights()
    assert torch.equal(model.embed_position.table, direct.embed_position.table)
    for key, value in direct.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_patch_comes_out_where_it_went_in():
    model = build("DiT-S/4", learn_sigma=False, width=48)
    image = torch.arange(2 * 3 * 16 * 16).float().view(2, 3, 16, 16)
    torch.nn.init.eye_(model.embed_patches.proj.weight)
    model.embed_patches.proj.bias.data = torch.zeros(48)
    patches = model.embed_patches(image).unflatten(-1, (3, 4, 4))  # (B, h, w, C, p, q)
    assert torch.equal(patches[1, 2, 3], image[1, :, 8:12, 12:16])
    model.final.proj.weight.data.zero_()
    model.final.proj.bias.data = torch.arange(
        48.0
    )  # the same patch at every place, pixel (p, q) before channel
    expected = torch.arange(48.0).view(4, 4, 3).permute(2, 0, 1).repeat(1, 4, 4)
    torch.testing.assert_close(model(*batch())[0], expected)


def test_long_skips_join_the_halves_from_the_middle_outwards():
    model = build("GSPN-S/4", depth=4)
    outputs, skips = [], []
    for block in model.first:
        block.register_forward_hook(lambda _, inputs, out: outputs.append(out))
    for block in model.second:
        block.register_forward_pre_hook(lambda _, inputs: skips.append(inputs[1]))
    model(*batch())
    assert [skip is out for skip, out in zip(skips, reversed(outputs), strict=True)] == [True, True]


def test_sincos_positions_tell_every_place_apart():
    table = build("DiT-S/4").embed_position.table.flatten(0, 1)  # (N, C)
    distance = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert distance.min() > 0.5


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in FAMILIES),
        *(pytest.param(name, "inductor", marks=pytest.mark.slow) for name in FAMILIES),
    ],
)
def test_compiles_to_one_graph(name, backend):
    model = build(name, width=16)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    expected, actual = model(*batch()), compiled(*batch())
    torch.testing.assert_close(actual, expected)
    gradients = []
    for out in (expected, actual):
        gradients.append(torch.autograd.grad(out.square().mean(), list(model.parameters())))
    torch.testing.assert_close(gradients[1], gradients[0])


def test_label_std_scales_the_label_embeddings():
    kinds = {"input_size": 8, "in_channels": 1, "num_classes": 2000, "width": 32, "depth": 2}
    for std in (0.02, 1.0):
        weight = create_model("GSPN-DiT-S/2", label_std=std, **kinds).embed_label.weight
        assert abs(float(weight.std()) / std - 1) < 0.02
