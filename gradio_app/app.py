"""The listening page: one recording, noisy and enhanced side by side. No model code here.

From the repository's root: `python -m gradio_app.app [--checkpoint NAME_OR_PATH] [--port N]`.
It serves this machine only and sends no data anywhere: analytics and sharing are off.
"""

import argparse
import sys
import time
from functools import lru_cache
from pathlib import Path

import gradio as gr
import numpy as np
import soxr
import torch
from torch import Tensor, nn

import speechlab
from speechlab.audio import files
from speechlab.errors import UserError
from speechlab.models.macs import n_params
from speechlab.report import figures
from speechlab.report.spectrogram import spectrogram_db
from speechlab.weights import hub
from speechlab.weights.checkpoints import locate

NONE_HERE = "no file yet: run `speechlab weights download NAME`, or enter a path"
MAX_SECONDS = 120  # longer recordings may not fit into memory in one pass
INTRODUCTION = """# speechlab: listen
Choose a checkpoint, add a noisy recording, press *Enhance*, and compare. Any sample rate;
each channel is enhanced separately."""


def load(checkpoint: str) -> nn.Module:
    """A model stays in memory between requests, until its file changes."""
    path = locate(checkpoint)
    return _load(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _load(path: Path, written: int) -> nn.Module:
    """written: modification time, part of the cache's key."""
    return speechlab.load(path)


def enhance(model: nn.Module, noisy: Tensor, sample_rate: int) -> Tensor:
    """(C, T) at any rate in Hz -> (C, T) at that rate, limited to the band of the model."""
    resampled = soxr.resample(noisy.T.numpy(), sample_rate, model.sample_rate)  # (T', C)
    if not len(resampled):
        raise UserError("the recording is too short: less than one sample at the model's rate")
    with torch.inference_mode():
        estimate = model(torch.from_numpy(resampled.T.copy())[:, None])  # (C, 1, T')
    estimate = estimate[:, 0]  # (C, T')
    restored = soxr.resample(estimate.T.numpy(), model.sample_rate, sample_rate)  # (about T, C)
    short = max(0, noisy.shape[1] - len(restored))  # resampling twice may lose a sample
    restored = np.pad(restored, ((0, short), (0, 0)))[: noisy.shape[1]]
    return torch.from_numpy(restored.T.copy())


def compare(checkpoint: str | None, recording: str | None) -> tuple:
    """For the button: enhanced (rate, int16 samples), both spectrograms, one line of text."""
    try:
        if not checkpoint:
            raise UserError("choose a checkpoint first")
        if not recording:
            raise UserError("add or record a sound first")
        return _compare(load(checkpoint), *files.load(recording))
    except UserError as error:
        return None, None, f"**{error}**"


def _compare(model: nn.Module, noisy: Tensor, sample_rate: int) -> tuple:
    seconds = noisy.shape[1] / sample_rate
    if seconds > MAX_SECONDS:
        raise UserError(f"the recording lasts {seconds:.0f} s: cut it to {MAX_SECONDS} s")
    start = time.perf_counter()
    estimate = enhance(model, noisy, sample_rate)
    spent = time.perf_counter() - start
    sounds = {"noisy": noisy, "enhanced": estimate}
    levels = {name: spectrogram_db(sound, sample_rate) for name, sound in sounds.items()}
    figure = figures.spectrograms(levels)
    facts = f"{n_params(model):,} parameters; {seconds:.1f} s of sound took {spent:.2f} s"
    return (sample_rate, _int16(estimate)), figure, facts


def _int16(waveform: Tensor) -> np.ndarray:
    """(C, T) -> (T, C). The player would normalise float samples; a comparison needs one level."""
    return (waveform.T.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()


def build(checkpoint: str | None = None) -> gr.Blocks:
    """The page. checkpoint: selected at the start; a published name, a file or a run folder."""
    choices = [file.name for file in hub.published("cleanumamba") if hub.find(file.name)]
    if checkpoint:
        load(checkpoint)  # an error now, not at the first request
        choices = list(dict.fromkeys([checkpoint, *choices]))
    hint = "a downloaded file, or any path" if choices else NONE_HERE
    # uploads are deleted after an hour; everything else when the server stops
    with gr.Blocks(title="speechlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=True):
            options = {"info": hint, "allow_custom_value": True, "scale": 3}
            chosen = gr.Dropdown(choices, label="checkpoint", **options)
            button = gr.Button("Enhance", variant="primary")
        with gr.Row():  # no "share" button: it would upload the recording
            recording = gr.Audio(label="noisy", type="filepath", buttons=["download"])
            estimate = gr.Audio(label="enhanced", format="wav", buttons=["download"])
        facts = gr.Markdown()
        figure = gr.Plot(label="spectrograms", format="png")
        results = [estimate, figure, facts]
        button.click(compare, [chosen, recording], results)
        # an old result never stands beside a new recording
        recording.change(lambda: (None, None, ""), None, results)
    return page


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start the server; returns its address. UserError if the port or host cannot be used."""
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:  # port in use or not allowed; above 65535
        where = "ports 7860 to 7959" if port is None else f"port {port}"
        raise UserError(f"{where} cannot be used on {host}; choose another --port") from error
    return url


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m gradio_app.app", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--checkpoint", help="a published name, a file or a run folder")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        page = build(options.checkpoint)
        url = serve(page, options.host, options.port)
    except UserError as error:
        print(f"speechlab: {error}", file=sys.stderr)
        return 2
    print(f"speechlab: listening on {url} (Ctrl-C to stop)")
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
