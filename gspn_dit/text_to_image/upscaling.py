"""Large pictures: drawn at the UNet's own size, then enlarged in steps, each re-noised a little and denoised again.

Every step's latents are kept, so that a stopped request goes on with the step that is missing. Everything an image
draws is keyed by (seed, image, step).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import save
from tqdm import tqdm

from gspn_dit.errors import UserError
from gspn_dit.files import read_json, replacing, write_json
from gspn_dit.latents.autoencoder import LatentAutoencoder
from gspn_dit.models.weights import read_tensors
from gspn_dit.random import SAMPLE, generator
from gspn_dit.text_to_image.system import System

STRENGTHS = (0.42, 0.32, 0.32, 0.28)
"""Share of the noise schedule that each enlargement goes back, of the published pictures; the last repeats."""
REQUEST = "request.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is drawn; it decides every number of the pictures together with the system's weights."""

    prompts: list[str]
    negative: str
    sizes: list[list[int]]
    """Height and width in pixels of every step; the last is the picture's."""
    strengths: list[float]
    steps: int
    """Steps of DDIM from pure noise; an enlargement takes its share of them."""
    guidance: float
    seed: int
    weights: str
    """Hash of the UNet's weights."""


def ladder(height: int, width: int, base: int, divisor: int) -> list[list[int]]:
    """Sizes in pixels from about base x base up to height x width, each twice as high and wide as the one before."""
    doublings = max(0, math.ceil(math.log2(math.sqrt(height * width) / base) - 1e-9))
    sizes = [
        [max(divisor, round(side / 2**left / divisor) * divisor) for side in (height, width)]
        for left in range(doublings, 0, -1)
    ]
    return [*sizes, [height, width]]


def open_request(folder: Path, request: Request) -> None:
    """Note in a folder what is drawn there; `UserError` for one that holds other pictures."""
    known, now = read_json(folder / REQUEST), asdict(request)
    if known is None:
        write_json(folder / REQUEST, now)
    elif known != now:
        changed = next(key for key in now if known.get(key) != now[key])
        raise UserError(
            f"--out {folder} was begun with another {changed} ({known.get(changed)}, now {now[changed]}): give it "
            "again, or another folder"
        )


def draw_pictures(system: System, request: Request, folder: Path, precision: torch.autocast) -> list[Path]:
    """Draw what is missing of a request; the files of its pictures in their full size."""
    if isinstance(system.autoencoder, LatentAutoencoder) and hasattr(system.autoencoder.vae, "enable_tiling"):
        system.autoencoder.vae.enable_tiling()
    missing = [not latents_file(folder, step, size).exists() for step, size in enumerate(request.sizes)]
    counts = [len(timesteps_of(system, request, step)) for step in range(len(request.sizes))]
    total = sum(count for count, absent in zip(counts, missing, strict=True) if absent) * len(request.prompts)
    pictures: list[Path] = []
    with tqdm(total=total, desc="denoising", unit="step") as bar:
        latents = None
        for step, size in enumerate(request.sizes):
            file = latents_file(folder, step, size)
            if file.exists():
                latents = read_tensors(file)["latents"]
            else:
                latents = one_step(system, request, step, latents, precision, bar.update)
                with replacing(file) as target:
                    target.write(save({"latents": latents}))
            pictures = list(save_pictures(system, latents, folder, size))
    return pictures


def latents_file(folder: Path, step: int, size: Sequence[int]) -> Path:
    return folder / f"step_{step}_{size[0]}x{size[1]}.safetensors"


def one_step(
    system: System,
    request: Request,
    step: int,
    before: torch.Tensor | None,
    precision: torch.autocast,
    tick: Callable[[], object],
) -> torch.Tensor:
    """The latents (n, C, h, w) of a step's size, from those of the step before, one image after another."""
    size, shape = request.sizes[step], (system.unet.config.in_channels,)
    shape += tuple(side // system.factor for side in size)
    timesteps = timesteps_of(system, request, step)
    drawn = []
    for number, prompt in enumerate(request.prompts):
        noise = torch.randn(1, *shape, generator=generator(SAMPLE, request.seed, number, step))
        x = noise.to(system.unet.device)
        if before is not None:
            x = system.scheduler.add_noise(
                enlarge(system, before[number : number + 1], size), x, timesteps[:1].long()
            )
        drawn.append(denoise(system, request, x, prompt, timesteps, tuple(size), precision, tick).cpu())
    return torch.cat(drawn).contiguous()


def sampler_of(system: System, steps: int) -> DDIMScheduler:
    """DDIM on the system's own schedule; only pixels are clipped."""
    pixels = not isinstance(system.autoencoder, LatentAutoencoder)
    sampler = DDIMScheduler.from_config(system.scheduler.config, clip_sample=pixels)
    sampler.set_timesteps(steps)
    return sampler


def timesteps_of(system: System, request: Request, step: int) -> torch.Tensor:
    """The timesteps of a step, falling: all, or the last share of them that its strength says."""
    timesteps = sampler_of(system, request.steps).timesteps
    if step == 0:
        return timesteps
    strength = request.strengths[min(step, len(request.strengths)) - 1]
    return timesteps[len(timesteps) - max(1, round(strength * len(timesteps))) :]


@torch.no_grad()
def denoise(
    system: System,
    request: Request,
    x: torch.Tensor,
    prompt: str,
    timesteps: torch.Tensor,
    size: tuple[int, int],
    precision: torch.autocast,
    tick: Callable[[], object],
) -> torch.Tensor:
    """x (1, C, h, w) at the first of the timesteps to a picture's latents (1, C, h, w), float32, by DDIM.

    With guidance the UNet sees caption and negative caption one after the other: half of the memory of both at once.
    """
    sampler = sampler_of(system, request.steps)
    captions = [prompt] if request.guidance == 1 else [prompt, request.negative]
    texts = [system.texts([caption], size) for caption in captions]
    for t in timesteps:
        with precision:
            outputs = [system.unet(x, t, **text, return_dict=False)[0].float() for text in texts]
        predicted = outputs[-1] + request.guidance * (outputs[0] - outputs[-1]) if outputs[1:] else outputs[0]
        x = sampler.step(predicted, t, x).prev_sample
        tick()
    if not x.isfinite().all():
        raise UserError(f"the picture of '{prompt}' at {size[0]}x{size[1]} is not finite: lower --guidance")
    return x


def enlarge(system: System, latents: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Latents (1, C, h, w) as those of their picture at another size, bicubic between its pixels."""
    pixels = system.autoencoder.decode(latents).permute(0, 3, 1, 2).float() / 127.5 - 1  # (1, 3, H, W)
    return system.latents_of(F.interpolate(pixels, tuple(size), mode="bicubic").clamp(-1, 1))


def save_pictures(system: System, latents: torch.Tensor, folder: Path, size: Sequence[int]) -> Iterator[Path]:
    """Decode and write the pictures of a step that are not there."""
    for number in range(len(latents)):
        path = folder / f"{number:03d}_{size[0]}x{size[1]}.png"
        if not path.exists():
            (image,) = system.autoencoder.decode(latents[number : number + 1]).numpy()
            with replacing(path) as file:
                Image.fromarray(image).save(file, format="PNG")
        yield path
