"""What models cost, against formulas and against a forward that is really computed."""

import pytest
import torch

from gspn_dit.errors import UserError
from gspn_dit.models import MODEL_NAMES, costs
from gspn_dit.models.__main__ import main
from gspn_dit.models.costs import model_costs
from tests.models.tiny import TINY, images, model


def test_flops_of_a_dit_by_formula():
    """Two for each weight and token, and 4 N C for each token of attention."""
    n, c, depth = 256, 384, 12
    per_token = 24 * c**2 + 4 * n * c  # 4 C^2 of attention and 8 C^2 of the MLP, twice
    once = depth * 2 * 6 * c**2 + 2 * 2 * c**2 + 2 * (256 * c + c**2)  # modulations, and the embedding of t
    ends = n * 2 * c * (2 * 2 * 4 + 2 * 2 * 8)
    found = model_costs("DiT-S/2")
    assert found.flops == depth * n * per_token + once + ends
    assert found.scan_flops == 0
    assert found.parameters == pytest.approx(33e6, rel=0.01)


def test_flops_of_a_scan_by_formula():
    """16 x 16 tokens: 15 lines have one before them, with 46 neighbours; G = 24."""
    found = model_costs("GSPN-DiT-S/2", depth=1)
    scan = 256 * 4 * 384 + 4 * 15 * (2 * 46 * 384 + (5 * 46 - 16) * 24)
    assert found.scan_flops == scan + 256 * 384 * (2 * 4 - 1)
    assert found.flops > found.scan_flops
    two = model_costs("GSPN-DiT-S/2", depth=2)
    assert two.scan_flops == 2 * found.scan_flops


@pytest.mark.parametrize("name", ["GSPN-S/4", "GSPN-DiT-S/4", "DiT-S/4"])
def test_activations_are_those_of_a_real_forward(name):
    real = model(name)
    own = {parameter.data_ptr() for parameter in real.parameters()}
    x, t, y = (torch.cat([tensor, tensor[:1]]) for tensor in images())
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor):
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    totals = []
    for batch in (2, 3):
        kept.clear()
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda s: s),
        ):
            alive.append(real(x[:batch].clone(), t[:batch].clone(), y[:batch].clone()))
        totals.append(sum(size for pointer, size in kept.items() if pointer not in own))
    assert model_costs(name, **TINY).activation_bytes == totals[1] - totals[0] > 0


def test_recomputing_keeps_less():
    settings = {**TINY, "depth": 4}
    kept = model_costs("DiT-S/4", **settings).activation_bytes
    assert model_costs("DiT-S/4", **settings, checkpoint_activations=True).activation_bytes < kept / 3


def test_the_table(capsys, monkeypatch):
    assert main(["DiT-S/8"]) == 0
    *head, row = capsys.readouterr().out.splitlines()
    found = model_costs("DiT-S/8")
    assert row.split() == [
        "DiT-S/8",
        f"{found.parameters / 1e6:.1f}M",
        f"{found.flops / 1e9:.2f}",
        "0.00",
        f"{found.activation_bytes / 1e6:.1f}",
    ]
    monkeypatch.setattr(costs, "model_costs", lambda name: found)
    assert main([]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[len(head) :]]
    assert names == list(MODEL_NAMES)


def test_an_unknown_name(capsys):
    with pytest.raises(UserError, match=r"^no model 'DiT-XXL/2'; did you mean 'DiT-XL/2'\?$"):
        main(["DiT-S/2", "DiT-XXL/2"])
    assert capsys.readouterr().out == ""  # before the first row
