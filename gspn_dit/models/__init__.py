"""Denoising networks: GSPN (arXiv 2501.12381), DiT (arXiv 2212.09748), and DiT with the GSPN module in it."""

from gspn_dit.models.networks import GSPN, DiT, create_model
from gspn_dit.models.settings import MODEL_NAMES, ModelSettings

__all__ = ["GSPN", "MODEL_NAMES", "DiT", "ModelSettings", "create_model"]
