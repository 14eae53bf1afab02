"""Print how many frames a second one core renders, truth included."""

from __future__ import annotations

from time import process_time

from foresight_gates.scenes import SceneParameters, render_block


def main() -> None:
    """Render some seconds' worth of clips and print one line per side and length."""
    for side, frames, clips in ((224, 1, 400), (224, 9, 80), (448, 1, 100), (448, 9, 24)):
        params = SceneParameters(side=side, frames=frames)
        render_block(params, "warm-up", 0, 2)
        start = process_time()
        # Four clips a block: what is measured is rendering, not the first touch of gigabytes.
        for first in range(0, clips, 4):
            render_block(params, "speed", first, 4)
        rate = clips * frames / (process_time() - start)
        print(f"side {side} T {frames}: {rate:.0f} frames/s, {rate / frames:.0f} clips/s")


if __name__ == "__main__":
    main()
