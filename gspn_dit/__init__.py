"""Latent diffusion with the GSPN line scan in place of attention (arXiv 2501.12381)."""

__all__ = ["create_model"]


def __getattr__(name: str):
    # Loaded on first use: `--help` and a rejected argument answer without waiting for torch.
    if name == "create_model":
        from gspn_dit.models import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
