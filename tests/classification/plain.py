"""The backbone once more, written out in plain PyTorch: loops over lines, images (B, C, H, W), weights by name."""

import torch
import torch.nn.functional as F


def plain_backbone(weights, depths, is_global, x, *, strides, names=("right", "left", "down", "up")):
    """Logits and the four maps; `weights` by the network's names, `is_global(stage, block)`."""
    x = conv(weights, "stem.conv1", x, strides[0])
    x = conv(weights, "stem.conv2", F.gelu(norm(weights, "stem.norm1", x)), strides[1])
    x = norm(weights, "stem.norm2", x)
    maps = []
    for stage, depth in enumerate(depths):
        if stage:
            x = norm(weights, f"stages.{stage}.down.1", conv(weights, f"stages.{stage}.down.0", x, 2))
        for number in range(depth):
            block = f"stages.{stage}.blocks.{number}"
            segment = 10**6 if is_global(stage, number) else 2
            x = x + mixer(weights, f"{block}.mixer", norm(weights, f"{block}.norm_mixer", x), segment, names)
            y = pointwise(weights, f"{block}.mlp.hidden", norm(weights, f"{block}.norm_mlp", x))
            x = x + pointwise(weights, f"{block}.mlp.out", 0.5 * y * (1 + torch.erf(y / 2**0.5)))
        maps.append(x)
    pooled = norm(weights, "norm", x).mean(dim=(2, 3))
    return pooled @ weights["head.weight"].T + weights["head.bias"], maps


def mixer(weights, name, x, segment, names):
    x = pointwise(weights, f"{name}.proj_in", x)
    kernel = weights[f"{name}.conv.weight"]
    x = F.conv2d(x, kernel, padding=3, groups=len(kernel))
    y = norm(weights, f"{name}.norm", scan_core(weights, f"{name}.core", x, segment, names))
    length = y.square().sum(dim=(2, 3), keepdim=True).sqrt()
    share = length / (length.mean(dim=1, keepdim=True) + 1e-6)
    gamma, beta = (weights[f"{name}.response_norm.{key}"].view(1, -1, 1, 1) for key in ("gamma", "beta"))
    return pointwise(weights, f"{name}.proj_out", y + gamma * (y * share) + beta)


def scan_core(weights, name, x, segment, names):
    """y = sum over the directions of m (u h + d x)."""
    channels = x.shape[1]
    z = pointwise(weights, f"{name}.bottleneck", x)
    lam, u, skip = (pointwise(weights, f"{name}.{key}", z) for key in ("to_lam", "to_u", "to_skip"))
    logits = None
    if f"{name}.to_logits.weight" in weights:
        logits = pointwise(weights, f"{name}.to_logits", z).unflatten(1, (4, 3, channels))
    y = 0
    for k, direction in enumerate(names):
        part = slice(k * channels, (k + 1) * channels)
        h = lam[:, part] * x
        if logits is not None:
            h = propagate(h, logits[:, k], direction, segment)
        y = y + weights[f"{name}.merge_weight"][k] * (u[:, part] * h + skip[:, part] * x)
    return y


def propagate(source, logits, direction, segment):
    """One direction; source (B, C, H, W) is lam x, logits (B, 3, C, H, W) for the neighbours -1, 0, 1 in the image."""
    columns = direction in ("right", "left")
    if not columns:  # lines become columns, positions in them rows
        source, logits = source.transpose(2, 3), logits.transpose(3, 4)
    _, _, length, lines = source.shape
    order = range(lines) if direction in ("right", "down") else range(lines - 1, -1, -1)
    states, before = {}, None
    for count, line in enumerate(order):
        h = source[..., line]
        if count % segment:
            moved = []
            for d in (-1, 0, 1):
                raw = torch.sigmoid(logits[:, d + 1, :, :, line])
                there = [(0 <= n + d < length) for n in range(length)]
                near = [before[..., n + d] if there[n] else 0 * before[..., n] for n in range(length)]
                moved.append((raw * torch.tensor(there, dtype=raw.dtype), torch.stack(near, dim=-1)))
            total = sum(weight for weight, _ in moved)
            h = h + sum(weight / total * state for weight, state in moved)
        states[line] = before = h
    h = torch.stack([states[line] for line in range(lines)], dim=-1)
    return h if columns else h.transpose(2, 3)


def conv(weights, name, x, stride):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=1)


def pointwise(weights, name, x):
    y = torch.einsum("oc,bchw->bohw", weights[f"{name}.weight"], x)
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def norm(weights, name, x):
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    scale, shift = (weights[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift
