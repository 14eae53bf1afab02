"""Train ``ltx-tiny``: LTX-Video's autoencoder, 32 x 32 x 8 pixels a cell and 128 channels, at a hundredth of its size.

    python benchmarks/ltx_tiny/prepare.py inputs
    python benchmarks/ltx_tiny/train.py inputs ltx-tiny

writes a checkpoint as diffusers saves it, in float16. README.md beside this file says what came of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import lpips
import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoResnetBlock3d
from pools import Pools, footage, scenes
from safetensors.torch import load_file
from torch import Tensor, nn

WIDTHS = (32, 64, 96, 128)
CHANNELS = 128
RATE = 1e-3
WARMUP = 100
"""Steps."""
CROP = 128
CLIPS, IMAGES = 32, 96
"""Crops in a step, of 9 frames and of 1. Every third step is of single frames: the decoder is not causal, so it
answers one latent frame otherwise than the first of two."""
NOISE = 0.1
"""Deviation of the noise that latents bear, relative to their own: the part of a VAE that keeps neighbours alike,
without a divergence for the latents to collapse under. It bounds the round trip at 20 dB above the mean colour's."""
PERCEPTUAL = 0.1
"""Weight of LPIPS on VGG, measured on ``SEEN`` frames of a step."""
SEEN = 12
FOOTAGE = 0.1
"""Share of a batch."""


class Perceptual(nn.Module):
    """LPIPS on VGG (Zhang et al. 2018) with the trunk of ``vgg16.safetensors`` and the heads of package lpips."""

    def __init__(self, trunk: Path) -> None:
        super().__init__()
        model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        weights = load_file(trunk)
        names = dict(zip(sorted(weights, key=_order), model.net.state_dict(), strict=True))
        model.net.load_state_dict({names[name]: value.float() for name, value in weights.items()})
        self.model = model.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean distance of frames [F, 3, H, W] in [-1, 1]."""
        distance: Tensor = self.model(a, b).mean()
        return distance


def _order(name: str) -> tuple[int, bool]:
    _, layer, kind = name.split(".")
    return int(layer), kind == "bias"


def autoencoder() -> AutoencoderKLLTXVideo:
    """Return LTX-Video 0.9.0's architecture with ``WIDTHS`` channels and one layer a block, initialised to learn.

    Variance is kept, biases, the last layer of each residual branch and the very last one start at 0. With torch's
    defaults the loss stays for thousands of steps at that of a grey frame, since all the network learns at first
    is to silence its own noise: squared error after 400 steps .188, against .053 from here.
    """
    layers = (1,) * (len(WIDTHS) + 1)
    model = AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        layers_per_block=layers,
        decoder_layers_per_block=layers,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, 0, module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, LTXVideoResnetBlock3d):
            nn.init.zeros_(module.conv2.conv.weight)
    nn.init.zeros_(model.decoder.conv_out.conv.weight)
    return model


def schedule(step: int, steps: int) -> tuple[float, float]:
    """Return the learning rate and the deviation of the noise at ``step``."""
    rate = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    return RATE * rate, NOISE * min(1.0, max(0.0, (step / steps - 0.1) / 0.2))


class Step:
    """One step on batches of one shape; on a GPU a graph of it, as 1,500 launches take longer than what they launch."""

    def __init__(
        self, model: AutoencoderKLLTXVideo, perceptual: Perceptual, optimiser: torch.optim.Optimizer, clips: Tensor
    ) -> None:
        self.model, self.perceptual, self.optimiser = model, perceptual, optimiser
        self.clips, self.noise = clips.clone(), torch.zeros((), device=clips.device)
        self.seen = torch.zeros(SEEN, dtype=torch.long, device=clips.device)
        self.totals = torch.zeros(3, device=clips.device)
        """Sums of L1 + MSE, LPIPS and MSE."""
        self.graph = torch.cuda.CUDAGraph() if clips.is_cuda else None
        if self.graph is not None:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):  # at a rate of 0: what cuDNN has to try out, it cannot try inside a graph
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self.graph):
                self._run()
            self.totals.zero_()

    def __call__(self, clips: Tensor, noise: float, generator: torch.Generator) -> None:
        """Take a step on ``clips`` [N, 3, T, H, W] in [-1, 1]."""
        self.clips.copy_(clips)
        self.noise.fill_(noise)
        seen = torch.randperm(len(clips) * clips.shape[2], generator=generator)[:SEEN]
        self.seen.copy_(seen, non_blocking=True)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()

    def _run(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.clips.device.type, torch.bfloat16, cache_enabled=False):
            latents = self.model.encoder(self.clips)[:, :CHANNELS]
            spread = latents.detach().float().var((0, 2, 3, 4)).mean().sqrt()
            latents = latents + self.noise * spread * torch.randn_like(latents)
            output = self.model.decoder(latents, None).float()
            distance = self.perceptual(*(x.transpose(1, 2).flatten(0, 1)[self.seen] for x in (output, self.clips)))
        error = output - self.clips
        squared = error.square().mean()
        pixel = error.abs().mean() + squared
        (pixel + PERCEPTUAL * distance).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.totals += torch.stack([pixel, distance, squared]).detach()


@torch.no_grad()
def psnr(model: AutoencoderKLLTXVideo, clips: Tensor) -> float:
    """Return the mean over clips [N, 3, T, H, W] of the peak signal-to-noise ratio in dB of their round trip."""
    values = []
    for part in clips.split(8):
        with torch.autocast(part.device.type, torch.bfloat16):
            output = model.decode(model.encode(part).latent_dist.mode()).sample
        error = (output.float().clamp(-1, 1) - part).square().mean((1, 2, 3, 4)) / 4
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def held_out(device: str) -> dict[str, Tensor]:
    """Return clips of the ``val`` stream by name, [N, 3, T, H, W] in [-1, 1]."""
    kinds = {"224, single": (224, 1, 64), "224, 9 frames": (224, 9, 16), "448, 9 frames": (448, 9, 8)}
    return {
        name: torch.from_numpy(scenes("val", side, frames, clips)).to(device).permute(0, 4, 1, 2, 3) / 127.5 - 1
        for name, (side, frames, clips) in kinds.items()
    }


@torch.no_grad()
def finished(model: AutoencoderKLLTXVideo, clips: Tensor) -> AutoencoderKLLTXVideo:
    """Return the model in float16, with the statistics of its latents of ``clips`` and the noise of its training."""
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in clips.split(CLIPS)])
    model.latents_mean.copy_(latents.mean((0, 2, 3, 4)))
    # One deviation for all channels: the model's own metric, in which what matters more to the picture is larger.
    spread = latents.var((0, 2, 3, 4)).mean().sqrt()
    model.latents_std.fill_(spread)
    model.encoder.conv_out.conv.weight[CHANNELS:] = 0
    model.encoder.conv_out.conv.bias[CHANNELS:] = 2 * torch.log(NOISE * spread)
    return model.half()


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=4096, help="scenes of 9 frames at 224 pixels; half as many at 448")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device, started = args.device, time.monotonic()

    rendered = [  # before CUDA starts, as processes are forked
        scenes("train", 224, 9, args.clips),
        scenes("train", 448, 9, args.clips // 2, start=args.clips),
        scenes("train", 224, 1, args.clips * 2),
    ]
    valid = held_out(device)
    slow, large, single = (torch.from_numpy(pool).to(device) for pool in rendered)
    filmed = tuple(torch.from_numpy(clip).to(device) for clip in footage(args.inputs))
    moving, still = Pools((slow, large), filmed, FOOTAGE), Pools((single, large), filmed, FOOTAGE)
    print(f"{time.monotonic() - started:.0f} s to render", flush=True)

    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator().manual_seed(args.seed)
    model = autoencoder().to(device, memory_format=torch.channels_last_3d)
    perceptual = Perceptual(args.inputs / "vgg16.safetensors").to(device, memory_format=torch.channels_last)
    rate = torch.zeros((), device=device)
    graphed = device != "cpu"
    optimiser = torch.optim.AdamW(
        model.parameters(), rate, betas=(0.9, 0.95), weight_decay=1e-4, fused=True, capturable=graphed
    )
    log = []
    draws = ((moving, CLIPS, 9), (moving, CLIPS, 9), (still, IMAGES, 1))
    kinds = {
        frames: Step(model, perceptual, optimiser, pool.batch(clips, frames, CROP, generator))
        for pool, clips, frames in draws[1:]
    }
    started = time.monotonic()
    for step in range(args.steps):
        pool, clips, frames = draws[step % 3]
        value, noise = schedule(step, args.steps)
        rate.fill_(value)
        kinds[frames](pool.batch(clips, frames, CROP, generator), noise, generator)
        last = step + 1 == args.steps
        if (step + 1) % 600 == 0 or last:
            record: dict[str, float] = {"step": step + 1, "seconds": round(time.monotonic() - started)}
            for frames, kind in kinds.items():
                count = (step % 600 + 1) * (2 if frames > 1 else 1) / 3
                names = (f"{name}, {frames} frames" for name in ("pixel", "lpips_vgg", "mse"))
                record |= dict(zip(names, ((kind.totals / count).tolist()), strict=True))
                kind.totals.zero_()
            if (step + 1) % 3000 == 0 or last:
                record |= {f"psnr {name}": psnr(model, clips) for name, clips in valid.items()}
            log.append({name: round(number, 4) for name, number in record.items()})
            print(json.dumps(log[-1]), flush=True)
    sample = torch.cat([moving.batch(CLIPS, 9, CROP, generator) for _ in range(16)])
    finished(model, sample).save_pretrained(args.output)
    (args.output / "log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()
