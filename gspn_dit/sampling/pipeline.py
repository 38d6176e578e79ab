"""A released run as a pipeline of diffusers, which saves, loads and moves it by its own means."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from gspn_dit.checkpoint import find_checkpoint, load_model, read_state
from gspn_dit.checks import check_finite
from gspn_dit.config import Config, load_config
from gspn_dit.diffusion.ddpm import DDPM, STEPS
from gspn_dit.diffusion.guidance import guided
from gspn_dit.errors import UserError
from gspn_dit.latents.autoencoder import (
    Autoencoder,
    LatentAutoencoder,
    create_autoencoder,
    fit_decoder,
    read_traits,
)
from gspn_dit.latents.normalization import ChannelNorm, Normalization, Scaling
from gspn_dit.models.networks import create_model


class GSPNDiTModel(ModelMixin, ConfigMixin):
    """A network of `create_model` in diffusers' form: its `settings` are its config."""

    @register_to_config
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.network = create_model(**settings)

    @property
    def num_classes(self) -> int:
        """Number of classes; as a label, that of none."""
        return self.network.num_classes

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See `gspn_dit.models.networks.Denoiser.forward`."""
        return self.network(x, t, y)


class GSPNDiTPipeline(DiffusionPipeline):
    """Images of classes: `pipe(class_labels=[207, 360], guidance_scale=1.5, num_inference_steps=25).images`.

    `GSPNDiTPipeline.from_run` makes one of a run, a release or a hub id; `save_pretrained` and `from_pretrained`
    are diffusers'. Another scheduler of the objective's family can take the place of its own.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(
        self,
        transformer: GSPNDiTModel,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | AutoencoderTiny | AutoencoderDC | None = None,
        channel_mean: list[float] | None = None,
        channel_std: list[float] | None = None,
    ) -> None:
        """`channel_mean` and `channel_std` (C,): statistics that the latents are normalised by; None: vae's scale."""
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(channel_mean=channel_mean, channel_std=channel_std)

    @classmethod
    def from_run(cls, run: str, *, vae: str | None = None, ema: bool = True) -> Self:
        """The pipeline of a run, checkpoint, release or hub id; `vae`: a decoder in place of the run's own.

        Raises `UserError` for what is no run, where the run does not say what decodes its latents, and for a decoder
        that does not fit them or is not of diffusers.
        """
        checkpoint = find_checkpoint(run)
        config = load_config(checkpoint / "config.yaml")
        name = vae or config.data.autoencoder
        if name is None and config.data.kind == "latents":
            raise UserError(f"{run} does not say what decodes its latents: give vae=HUB_ID_OR_FOLDER")
        autoencoder = create_autoencoder(name, "cpu")
        network = load_model(checkpoint, ema=ema)[0]
        dataset = read_state(checkpoint).get("dataset", {})
        fit_decoder(autoencoder, dataset, channels=network.in_channels, size=network.input_size)
        transformer = GSPNDiTModel(settings=network.config)
        transformer.network.load_state_dict(network.state_dict())
        return cls(transformer.eval(), default_scheduler(config), *vae_of(autoencoder))

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample one image of each class.

        Args:
            class_labels: classes, from 0; the network's `num_classes` for none.
            guidance_scale: classifier-free guidance; 1 is none.
            num_inference_steps: steps of the scheduler.
            generator: draws the noise, of all images or one for each.
            height, width: pixels of an image, for networks without positions; those trained on unless given.
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], or "latent".

        Raises:
            ValueError: labels that the network does not have, no steps, a scale below 1, a size in no whole number of
                tokens.
            NotFinite (a FloatingPointError): latents that are NaN or infinite.
        """
        network, device = self.transformer.network, self._execution_device
        y = torch.as_tensor(class_labels).reshape(-1)
        if y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
            raise ValueError(f"class_labels are {y.dtype}; expected integers")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}; expected at least 1")
        predict = guided(self.transformer, y.to(device, torch.int64), guidance_scale)
        shape = (len(y), network.in_channels, *self.latent_size(height, width))
        x = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        flow = not network.settings.learn_sigma
        self.set_steps(num_inference_steps, flow, device)
        x = x * self.scheduler.init_noise_sigma if hasattr(self.scheduler, "init_noise_sigma") else x
        learned = str(self.scheduler.config.get("variance_type", "")).startswith("learned")
        for t in self.progress_bar(self.scheduler.timesteps):
            time = float(t) / STEPS if flow else float(t)
            prediction = predict(x, time)
            if not flow and not learned:
                prediction = prediction[:, : network.in_channels]
            x = self.scheduler.step(prediction, t, x, return_dict=False)[0]
        check_finite(x, "its latents are")
        images = x if output_type == "latent" else self.decode(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def set_steps(self, steps: int, flow: bool, device: torch.device) -> None:
        """Give the scheduler its steps; of a flow even ones from t = 1, as they are trained and sampled here."""
        if flow:
            self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)

    def latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width of the latents; ValueError where the pixels are no whole number of latent pixels."""
        network = self.transformer.network
        factor = 1 if self.vae is None else read_traits(self.vae, "vae").factor
        sides = [factor * network.input_size if side is None else side for side in (height, width)]
        token = factor * network.settings.patch_size
        if any(side <= 0 or side % token for side in sides):
            raise ValueError(
                f"height and width are {sides}; expected multiples of {token}, the pixels of a token"
            )
        return sides[0] // factor, sides[1] // factor

    def decode(self, x: torch.Tensor, output_type: str) -> Any:
        """Images of latents (B, C, h, w)."""
        if self.vae is None:
            pixels = x.expand(-1, 3, -1, -1)
        else:
            z = self.normalization.undo(x)
            pixels = self.vae.decode(z.to(self.vae.dtype), return_dict=False)[0]
        return VaeImageProcessor().postprocess(pixels.float(), output_type=output_type)

    @property
    def normalization(self) -> Normalization:
        """What was done to the vae's latents: by the pipeline's statistics, or by the vae's own scale."""
        if self.config.channel_mean is not None:
            return ChannelNorm(tuple(self.config.channel_mean), tuple(self.config.channel_std))
        traits = read_traits(self.vae, "vae")
        return Scaling(traits.scale, traits.shift)


def vae_of(autoencoder: Autoencoder) -> tuple[ModelMixin | None, list[float] | None, list[float] | None]:
    """A pipeline's vae and statistics; `UserError` for a vae that is not of diffusers, which could not be saved."""
    if not isinstance(autoencoder, LatentAutoencoder):
        return None, None, None
    if not isinstance(autoencoder.vae, ModelMixin):
        raise UserError(
            f"autoencoder '{autoencoder.name}' is none of diffusers, and a pipeline cannot hold it: use sample.py"
        )
    norm = autoencoder.normalization
    statistics = (list(norm.mean), list(norm.std)) if isinstance(norm, ChannelNorm) else (None, None)
    return autoencoder.vae, *statistics


def default_scheduler(config: Config) -> SchedulerMixin:
    """Euler's method for a flow, DPM-Solver++ for ddpm: with the times of this project's samplers of that name."""
    if config.diffusion.objective == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=STEPS)
    betas = DDPM().schedule.betas.tolist()
    return DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS, trained_betas=betas, timestep_spacing="linspace"
    )
