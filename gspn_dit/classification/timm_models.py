"""The backbones in timm's registry; imported only where timm is installed."""

from typing import Any

from timm.models import register_model

from gspn_dit.classification.backbone import Backbone, create_backbone

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels in [0, 1], as timm and torchvision have them."""
OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
"""What timm passes to every model, for weights from the hub."""


@register_model
def gspn_tiny(pretrained: bool = False, **settings: Any) -> Backbone:
    """GSPN-T; `settings` as `create_backbone` takes them. ValueError for `pretrained`: there are no weights."""
    return _create("gspn_tiny", pretrained, settings)


@register_model
def gspn_small(pretrained: bool = False, **settings: Any) -> Backbone:
    """GSPN-S; see `gspn_tiny`."""
    return _create("gspn_small", pretrained, settings)


@register_model
def gspn_base(pretrained: bool = False, **settings: Any) -> Backbone:
    """GSPN-B; see `gspn_tiny`."""
    return _create("gspn_base", pretrained, settings)


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> Backbone:
    if pretrained:
        raise ValueError("pretrained is True; expected False: there are no published weights of this network")
    model = create_backbone(name, **{key: value for key, value in settings.items() if key not in OF_TIMM})
    model.pretrained_cfg = model.default_cfg = {
        "architecture": name,
        "input_size": (3, 224, 224),
        "num_classes": model.num_classes,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "crop_pct": 224 / 256,
        "first_conv": "stem.conv1",
        "classifier": "head",
    }
    return model
