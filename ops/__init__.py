"""The GSPN line scan (arXiv 2501.12381): compiled kernels and the plain PyTorch reference. See README.md."""

from ops.reference import gspn_scan_reference
from ops.scan import gspn_scan

__all__ = ["gspn_scan", "gspn_scan_reference"]
