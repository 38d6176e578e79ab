"""The page: what may be chosen on the left, the picture on the right."""

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from gspn_dit.app.studio import MOST_IMAGES, Studio
from gspn_dit.errors import UserError
from gspn_dit.names import printable

FONTS = ["system-ui", "sans-serif"]  # of the browser: no page of ours asks another server for one
LARGE = """
#picture .image-container > button, #picture .image-frame, #picture img {width: 100% !important}
#picture img {height: auto; max-height: 75vh; object-fit: contain !important}
"""
"""A grid of small pictures fills its place; what is downloaded stays as it was drawn."""
MOST_SEED = 2**31 - 1


def serve(studio: Studio, host: str, port: int) -> None:
    """Serve the page of a run from a thread of its own."""
    page = build(studio)
    page.queue(default_concurrency_limit=1)  # one model: who comes second waits, and sees it
    page.launch(
        server_name=host,
        server_port=port,
        theme=gr.themes.Default(font=FONTS, font_mono=["monospace"]),
        css=LARGE,
        footer_links=[],
        ssr_mode=False,  # else a second server, of Node, where that is installed
        prevent_thread_lock=True,
        quiet=True,
    )


def build(studio: Studio) -> gr.Blocks:
    """The page of a run."""
    defaults = studio.first.request
    with gr.Blocks(title=f"GSPN-DiT: {printable(studio.run)}") as page:
        gr.Markdown(f"## {printable(studio.run)}\n{studio.title}")
        with gr.Row():
            with gr.Column(scale=1):
                choices = [(f"{i}: {printable(name)}", i) for i, name in enumerate(studio.class_names)]
                label = gr.Dropdown(choices, value=0, label="class", filterable=True, elem_id="label")
                count = gr.Slider(1, MOST_IMAGES, value=8, step=1, label="images")
                scale = gr.Slider(1, 10, value=defaults.cfg_scale, step=0.1, label="guidance (1: none)")
                steps = gr.Slider(1, 250, value=defaults.steps, step=1, label="steps")
                sampler = gr.Dropdown(list(studio.samplers), value=defaults.sampler, label="sampler")
                with gr.Row():
                    why = "" if studio.any_size else " (fixed: the network has positions)"
                    sides = [
                        gr.Number(studio.side, precision=0, label=f"{name}{why}", interactive=studio.any_size)
                        for name in ("height", "width")
                    ]
                with gr.Row():
                    seed = gr.Number(0, precision=0, minimum=0, label="seed", elem_id="seed")
                    fresh = gr.Checkbox(False, label="a new seed each time")
                with gr.Row():
                    draw = gr.Button("Draw", variant="primary", elem_id="draw")
                    stop = gr.Button("Stop")
            with gr.Column(scale=2):
                picture = gr.Image(
                    label="picture",
                    format="png",
                    interactive=False,
                    elem_id="picture",
                    buttons=["download", "fullscreen"],
                )
                word = gr.Markdown("", elem_id="word")
        chosen = [label, count, scale, steps, sampler, *sides, seed, fresh]

        def show(request: gr.Request, *values: Any) -> Iterator[tuple[np.ndarray, str, int]]:
            yield from drawn(studio, request.session_hash, *values)

        def leave(request: gr.Request) -> None:
            studio.stop(request.session_hash)

        draw.click(show, chosen, [picture, word, seed])
        # Not by `cancels`: it lets go of the generator without closing it, and the work would go on.
        stop.click(leave, queue=False)
        page.unload(leave)
    return page


def drawn(
    studio: Studio,
    who: str,
    label: int,
    count: int,
    cfg_scale: float,
    steps: int,
    sampler: str,
    height: int | None,
    width: int | None,
    seed: int | None,
    fresh: bool,
) -> Iterator[tuple[np.ndarray, str, int]]:
    """Pictures, words and the seed in use; what is wrong is shown in the words of the command line."""
    seed = random.randint(0, MOST_SEED) if fresh or seed is None else int(seed)
    try:
        pictures = studio.draw(
            label,
            int(count),
            cfg_scale=cfg_scale,
            steps=int(steps),
            sampler=sampler,
            seed=seed,
            height=int(height or 0),
            width=int(width or 0),
            who=who,
        )
        for image, word in pictures:
            yield image, word, seed
    except UserError as error:
        raise gr.Error(printable(error), duration=None) from None
