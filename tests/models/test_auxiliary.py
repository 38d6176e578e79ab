"""The auxiliary head: what it reads and predicts, and that the rest of the network does not notice it."""

import pytest
import torch
import torch.nn.functional as F

from gspn_dit.models import create_model, from_pretrained

from .tiny import TINY, images, model, moved

NAMES = ("GSPN-DiT-S/4", "DiT-S/4")


@pytest.mark.parametrize("name", NAMES)
def test_with_the_head_the_rest_starts_and_predicts_as_without(name):
    plain, headed = model(name), model(name, auxiliary_head=0)
    state = headed.state_dict()
    added = {key for key in state if key.startswith("auxiliary.")}
    assert added == {
        f"auxiliary.{part}.{kind}" for part in ("modulation", "proj") for kind in ("weight", "bias")
    }
    assert state.keys() - added == plain.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert all(not state[key].any() for key in added)
    moved(plain), moved(headed)  # the head's parameters are drawn last
    assert torch.equal(plain(*images()), headed(*images()))
    assert torch.equal(headed(*images(), auxiliary=True)[0], headed(*images()))


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_head_predicts_from_the_tokens_after_its_block(name, head):
    network = moved(model(name, depth=3, auxiliary_head=head))
    outputs = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, out: outputs.append(out))
    x, t, y = images()
    _, early = network(x, t, y, auxiliary=True)
    condition = F.silu(network.embed_time(t) + network.embed_label(y))
    shift, scale = network.auxiliary.modulation(condition).chunk(2, dim=-1)
    tokens = F.layer_norm(outputs[head], (32,), eps=1e-6) * (1 + scale[:, None, None]) + shift[:, None, None]
    patches = network.auxiliary.proj(tokens)  # (2, 4, 4, 4 * 4 * 6)
    expected = patches.view(2, 4, 4, 4, 4, 6).permute(0, 5, 1, 3, 2, 4).reshape(2, 6, 16, 16)
    torch.testing.assert_close(early, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_the_last_blocks_not_from_the_head(name):
    network = moved(model(name, auxiliary_head=0))
    last, early = network(*images(), auxiliary=True)
    early.square().mean().backward(retain_graph=True)
    heard = {key for key, parameter in network.named_parameters() if parameter.grad is not None}
    assert not any(key.startswith(("blocks.1.", "final.")) for key in heard)
    assert any(key.startswith("blocks.0.") for key in heard)
    last.square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow)])
def test_both_predictions_compile_to_one_graph(name):
    torch.compiler.reset()
    network = moved(model(name, width=16, auxiliary_head=0))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*images(), auxiliary=True), network(*images(), auxiliary=True))
    torch.testing.assert_close(compiled(*images()), network(*images()))


@pytest.mark.parametrize("name", NAMES)
def test_recomputed_activations_give_the_same_gradients(name):
    gradients = []
    for recompute in (False, True):
        network = moved(model(name, auxiliary_head=0, checkpoint_activations=recompute))
        last, early = network(*images(), auxiliary=True)
        (last.square().mean() + early.square().mean()).backward()
        gradients.append({key: parameter.grad for key, parameter in network.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_and_comes_back(name, tmp_path):
    network = moved(model(name, auxiliary_head=0)).eval()
    network.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.config["auxiliary_head"] == 0
    for before, after in zip(
        network(*images(), auxiliary=True), again(*images(), auxiliary=True), strict=True
    ):
        assert torch.equal(before, after)


def test_a_network_built_on_meta_is_filled():
    with torch.device("meta"):
        network = create_model("GSPN-DiT-S/4", **TINY, auxiliary_head=0)
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.fill_(torch.nan)
    network.initialize_weights()
    last, early = network(*images(), auxiliary=True)
    assert not last.any() and not early.any()


def test_a_network_without_it_says_so():
    with pytest.raises(
        ValueError, match="auxiliary is True; expected False: the model has no auxiliary head"
    ):
        model()(*images(), auxiliary=True)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "DiT-S/4",
            {"auxiliary_head": 1},
            "auxiliary_head is 1; expected a block from 0 to 0, before the last",
        ),
        ("DiT-S/4", {"auxiliary_head": 0, "depth": 1}, "auxiliary_head is 0; expected none"),
        ("DiT-S/4", {"auxiliary_head": -1}, "auxiliary_head is -1; expected an integer of 0 or more"),
        ("DiT-S/4", {"auxiliary_head": True}, "auxiliary_head is True; expected an integer"),
        (
            "GSPN-S/4",
            {"auxiliary_head": 0},
            "auxiliary_head is 0; expected none: long skips pass GSPN-S/4's middle",
        ),
    ],
)
def test_places_that_cannot_be_are_named(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        model(name, **overrides)
