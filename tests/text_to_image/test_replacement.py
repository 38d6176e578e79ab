"""The module in self-attention's place against a plain definition, and the UNet around it, in both layouts."""

import copy
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import nn

from gspn_dit.text_to_image import GSPNUNet2DConditionModel, replace_self_attention, scan_attention
from gspn_dit.text_to_image.replacement import scan_modules
from gspn_dit.text_to_image.scan_attention import ScanAttention
from tests.text_to_image.tiny import LAYOUTS, make_arguments, make_image, make_unet
from tests.utils import assert_near

TIMES = torch.tensor([3, 700])
LINES = {
    "right": lambda t, n, height, width: (n, t),
    "left": lambda t, n, height, width: (n, width - 1 - t),
    "down": lambda t, n, height, width: (t, n),
    "up": lambda t, n, height, width: (height - 1 - t, n),
}
"""Of each direction, row and column of position n in the t-th line that the scan meets."""


def make_module(keep_qkv: bool, width: int = 4, rank: int = 3, segment: int = 2) -> ScanAttention:
    torch.manual_seed(0)
    qkv = tuple(nn.Linear(width, width, bias=False) for _ in range(3)) if keep_qkv else None
    to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])
    module = ScanAttention(width, rank, segment, to_out, qkv).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def plain(module: ScanAttention, x: torch.Tensor) -> torch.Tensor:
    """The definition for one image (H, W, C), number by number."""
    height, width, channels = x.shape
    linear = lambda layer, value: value @ layer.weight.T  # noqa: E731
    z = z_lam = z_u = linear(module.bottleneck, x)
    values = x
    if module.keeps_qkv:
        z_lam = linear(module.bottleneck, x + linear(module.to_k, x))
        z_u = linear(module.bottleneck, x + linear(module.to_q, x))
        values = x + linear(module.to_v, x)
    maps = (height, width, 4, channels)
    lam, u, skip = linear(module.to_lam, z_lam), linear(module.to_u, z_u), linear(module.to_skip, z)
    lam, u, skip = (tensor.reshape(maps) for tensor in (lam, u, skip))
    logits = linear(module.to_logits, z).reshape(height, width, 4, 3, channels)
    y = torch.zeros_like(x)
    for k, place in enumerate(LINES.values()):
        count, length = (width, height) if k < 2 else (height, width)
        for c in range(channels):
            before = [0.0] * length
            for t in range(count):
                line = []
                for n in range(length):
                    i, j = place(t, n, height, width)
                    value = float(lam[i, j, k, c] * values[i, j, c])
                    if t % module.segment:
                        gates = {
                            d: 1 / (1 + math.exp(-float(logits[i, j, k, d + 1, c])))
                            for d in (-1, 0, 1)
                            if 0 <= n + d < length
                        }
                        value += sum(g * before[n + d] for d, g in gates.items()) / sum(gates.values())
                    y[i, j, c] += module.merge[k] * (
                        u[i, j, k, c] * value + skip[i, j, k, c] * values[i, j, c]
                    )
                    line.append(value)
                before = line
    return module.to_out[0](y)


@pytest.mark.parametrize("keep_qkv", [False, True])
@torch.no_grad()
def test_the_module_is_its_definition(keep_qkv, monkeypatch):
    module = make_module(keep_qkv)
    x = torch.randn(2, 3 * 5, 4, dtype=torch.float64)
    expected = torch.stack([plain(module, image.reshape(3, 5, 4)).reshape(15, 4) for image in x])
    grid = x.new_empty(3, 5, 0)
    assert_near(module(x, attention_mask=grid), expected, tolerance=1e-12)
    monkeypatch.setattr(scan_attention, "WHOLE", 1)  # direction by direction, as large images are scanned
    assert_near(module(x, attention_mask=grid), expected, tolerance=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_replaced_and_what_stays(layout):
    before = make_unet(layout)
    unet = replace_self_attention(copy.deepcopy(before))
    assert isinstance(unet, GSPNUNet2DConditionModel)
    modules = scan_modules(unet)
    names = {name for name, _ in before.named_modules() if name.endswith("attn1")}
    assert modules.keys() == names and len(names) == {"sd": 4, "sdxl": 8}[layout]
    old, new = before.state_dict(), unet.state_dict()
    within = tuple(f"{name}." for name in names)
    assert {name for name in new if not name.startswith(within)} == {
        name for name in old if not name.startswith(within)
    }
    for name in (
        old.keys() & new.keys()
    ):  # cross-attention and all else, and attention's own output projection
        assert torch.equal(old[name], new[name]), name
    for name, module in modules.items():
        assert module.rank == max(1, 16 // (32 if layout == "sdxl" else 8)) and module.segment == 4
        kept = {f"{name}.to_{part}.weight" for part in "qkv"} & new.keys()
        assert len(kept) == (3 if layout == "sdxl" else 0) and f"{name}.to_out.0.weight" in new


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_other_sizes_have_their_own_grid(layout):
    unet = replace_self_attention(make_unet(layout), rank=2)
    grids = []
    for module in scan_modules(unet).values():
        module.register_forward_pre_hook(
            lambda module, args, kwargs: grids.append(tuple(kwargs["attention_mask"].shape)), with_kwargs=True
        )
    for height, width in ((8, 24), (24, 8), (12, 12)):
        grids.clear()
        arguments = make_arguments(layout)
        output = unet(make_image(height, width), TIMES, **arguments)[0]
        assert output.shape == (2, 3, height, width) and output.isfinite().all()
        assert set(grids) == {(height // 2, width // 2, 0)}
    x = make_image(8, 24)  # a row is not a column: as many tokens, other neighbours
    module = next(iter(scan_modules(unet).values()))
    tokens = torch.randn(1, 8 * 24, 16)
    wide, high = (module(tokens, attention_mask=x.new_empty(*grid, 0)) for grid in ((8, 24), (24, 8)))
    assert (wide - high).abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputation_sees_the_grid_of_its_own_forward(layout):
    unet = replace_self_attention(make_unet(layout)).train()
    arguments = make_arguments(layout)

    def gradients():
        unet.zero_grad()
        first = unet(make_image(8, 16), TIMES, **arguments)[0]
        unet(make_image(16, 8), TIMES, **arguments)  # another grid before the backward
        first.square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}

    plain = gradients()
    unet.enable_gradient_checkpointing()
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@torch.no_grad()
def test_one_graph_for_the_compiler():
    unet = replace_self_attention(make_unet())
    compiled = torch.compile(unet, backend="eager", fullgraph=True, dynamic=True)
    arguments = make_arguments("sd")
    for sides in ((8, 16), (16, 8)):
        x = make_image(*sides)
        assert_near(compiled(x, TIMES, **arguments)[0], unet(x, TIMES, **arguments)[0], tolerance=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_diffusers_saves_and_loads_it(layout, tmp_path):
    unet = replace_self_attention(make_unet(layout), rank=3, segment=0, keep_qkv=layout == "sd")
    unet.save_pretrained(tmp_path)
    loaded, report = GSPNUNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.gspn == {"rank": 3, "segment": 0, "keep_qkv": layout == "sd"}
    x, arguments = make_image(8, 12), make_arguments(layout)
    assert torch.equal(loaded.eval()(x, TIMES, **arguments)[0], unet(x, TIMES, **arguments)[0])


def test_a_pipeline_of_diffusers_saves_and_loads_it(tmp_path):
    DDPMPipeline(replace_self_attention(make_unet()), DDPMScheduler()).save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path).unet
    assert isinstance(loaded, GSPNUNet2DConditionModel)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), reload(tmp_path).parameters(), strict=True)
    )


def reload(folder):
    return GSPNUNet2DConditionModel.from_pretrained(folder / "unet")


def test_dtype_and_device_are_those_of_the_unet():
    unet = replace_self_attention(make_unet().to(torch.float64))
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float64}
    assert replace_self_attention(make_unet().to("meta")).device.type == "meta"


def test_what_cannot_be_replaced_is_refused_and_left_as_it_was():
    for unet, settings, message in (
        (make_unet(), {"segment": -1}, "segment is -1; expected a whole number, at least 0"),
        (make_unet(), {"rank": 0}, "rank is 0; expected a whole number, at least 1"),
        (make_unet(), {"rank": 2.5}, "rank is 2.5; expected a whole number"),
        (make_unet(), {"keep_qkv": "no"}, "keep_qkv is 'no'; expected True, False or None"),
        (make_unet(only_cross_attention=True), {}, "is cross-attention"),
        (replace_self_attention(make_unet()), {}, "replaced already"),
        (
            make_unet(
                down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None
            ),
            {},
            "no transformer block",
        ),
    ):
        before = list(unet.state_dict())
        with pytest.raises(ValueError, match=message):
            replace_self_attention(unet, **settings)
        assert list(unet.state_dict()) == before
    with pytest.raises(TypeError, match="unet is a Linear; expected diffusers' UNet2DConditionModel"):
        replace_self_attention(nn.Linear(2, 2))
    unet = replace_self_attention(make_unet())
    with pytest.raises(ValueError, match="attention_mask: expected None"):
        unet(make_image(8, 8), TIMES, attention_mask=torch.ones(2, 16), **make_arguments("sd"))
    module = next(iter(scan_modules(unet).values()))
    with pytest.raises(ValueError, match="holds no token grid"):
        module(torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="16 tokens; expected 3 x 4"):
        module(torch.zeros(1, 16, 16), attention_mask=torch.empty(3, 4, 0))


def test_a_unet_with_attention_is_not_loaded_as_one_with_the_scan(tmp_path):
    make_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load it as UNet2DConditionModel and call replace_self_attention"):
        GSPNUNet2DConditionModel.from_pretrained(tmp_path)
