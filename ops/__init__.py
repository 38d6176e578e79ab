"""The GSPN line scan (arXiv 2501.12381): compiled kernels and the plain PyTorch reference. See README.md."""

from ops.conv import depthwise_conv
from ops.merge import gated_merge
from ops.mix import gspn_mix
from ops.reference import (
    depthwise_conv_reference,
    gated_merge_reference,
    gspn_mix_reference,
    gspn_scan_reference,
)
from ops.scan import gspn_scan

__all__ = [
    "depthwise_conv",
    "depthwise_conv_reference",
    "gated_merge",
    "gated_merge_reference",
    "gspn_mix",
    "gspn_mix_reference",
    "gspn_scan",
    "gspn_scan_reference",
]
