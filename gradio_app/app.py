"""The listening page: one recording, noisy and enhanced side by side. No model code here.

From the repository's root: `python -m gradio_app.app [--checkpoint NAME_OR_PATH] [--port N]`.
It sends no data anywhere: analytics and sharing are off. It serves this machine only, unless --host
says otherwise; then only the listed checkpoints can be chosen, and no path can be typed.
"""

import argparse
import ipaddress
import sys
import time
from functools import lru_cache, partial
from pathlib import Path

import gradio as gr
import numpy as np
import soxr
import torch
from torch import Tensor

import speechlab
from gradio_app import decoding
from speechlab.errors import UserError
from speechlab.inference.enhance import enhance_blocks
from speechlab.models.base import Model
from speechlab.models.device import find, moved
from speechlab.models.macs import n_params
from speechlab.report import figures
from speechlab.report.spectrogram import spectrogram_db
from speechlab.weights import hub, own
from speechlab.weights.checkpoints import locate

NONE_HERE = "no file yet: run `speechlab weights download NAME`, or enter a path"
MAX_FILE_SIZE = "200mb"  # of an upload
INTRODUCTION = """# speechlab: listen
Choose a checkpoint, add a noisy recording, press *Enhance*, and compare. Any sample rate;
each channel is enhanced separately."""


def load(checkpoint: str, device: str = "cpu") -> Model:
    """A model stays in memory between requests, until its file changes."""
    path = locate(checkpoint)
    return _load(path, path.stat().st_mtime_ns, device)


@lru_cache(maxsize=2)
def _load(path: Path, written: int, device: str) -> Model:
    """written: modification time, part of the cache's key."""
    model = moved(speechlab.load(path), device)
    if model.n_sources > 1:
        raise UserError(f"{path}: separates speakers; use `speechlab separate`")
    return model


def enhance(model: Model, noisy: Tensor, sample_rate: int) -> Tensor:
    """(C, T) at any rate in Hz -> (C, T) at that rate, limited to the band of the model."""
    resampled = soxr.resample(noisy.T.numpy(), sample_rate, model.sample_rate)  # (T', C)
    if not len(resampled):
        raise UserError("the recording is too short: less than one sample at the model's rate")
    noisy_blocks = [torch.from_numpy(resampled.T.copy())]
    blocks = enhance_blocks(model, noisy_blocks, name="the recording", level="robust")
    estimate = torch.cat(list(blocks), -1)  # (C, T')
    restored = soxr.resample(estimate.T.numpy(), model.sample_rate, sample_rate)  # (about T, C)
    short = max(0, noisy.shape[1] - len(restored))  # resampling twice may lose a sample
    restored = np.pad(restored, ((0, short), (0, 0)))[: noisy.shape[1]]
    return torch.from_numpy(restored.T.copy())


def compare(
    checkpoint: str | None,
    recording: str | None,
    device: str = "cpu",
    allowed: tuple[str, ...] | None = None,
) -> tuple:
    """For the button: enhanced (rate, int16 samples), both spectrograms, one line of text.

    allowed: the checkpoints that can be chosen; None: any.
    """
    try:
        if not checkpoint:
            raise UserError("choose a checkpoint first")
        if allowed is not None and checkpoint not in allowed:
            raise UserError("choose a checkpoint of the list")
        if not recording:
            raise UserError("add or record a sound first")
        model = load(checkpoint, device)
        samples, sample_rate = decoding.load(recording)
        return _compare(model, torch.from_numpy(samples), sample_rate)
    except UserError as error:
        return None, None, f"**{error}**"


def _compare(model: Model, noisy: Tensor, sample_rate: int) -> tuple:
    seconds = noisy.shape[1] / sample_rate
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


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server of that name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def build(checkpoint: str | None = None, device: str = "cpu", host: str = "127.0.0.1") -> gr.Blocks:
    """The page.

    checkpoint: selected at the start; a published name, a file or a run folder.
    device: where the model computes, as `speechlab enhance --device`.
    host: served on; other checkpoints can be typed only where it is this machine.
    """
    find(device)
    choices = [file.name for file in own.files() if file.system == "cleanumamba"]
    choices += [file.name for file in hub.published("cleanumamba") if hub.find(file.name)]
    if checkpoint:
        load(checkpoint, device)  # an error now, not at the first request
        choices = list(dict.fromkeys([checkpoint, *choices]))
    typed = is_loopback(host)
    hint = ("one of ours or a downloaded file" + ", or any path" * typed) if choices else NONE_HERE
    run = partial(compare, device=device, allowed=None if typed else tuple(choices))
    # uploads are deleted after an hour; everything else when the server stops
    with gr.Blocks(title="speechlab", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row(equal_height=True):
            options = {"info": hint, "allow_custom_value": typed, "scale": 3}
            chosen = gr.Dropdown(choices, label="checkpoint", **options)
            button = gr.Button("Enhance", variant="primary")
        with gr.Row():  # no "share" button: it would upload the recording
            recording = gr.Audio(label="noisy", type="filepath", buttons=["download"])
            estimate = gr.Audio(label="enhanced", format="wav", buttons=["download"])
        facts = gr.Markdown()
        figure = gr.Plot(label="spectrograms", format="png")
        results = [estimate, figure, facts]
        button.click(run, [chosen, recording], results, api_name="compare")
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
            max_file_size=MAX_FILE_SIZE,
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
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    options = parser.parse_args(arguments)
    try:
        page = build(options.checkpoint, options.device, options.host)
        url = serve(page, options.host, options.port)
    except UserError as error:
        print(f"speechlab: {error}", file=sys.stderr)
        return 2
    print(f"speechlab: listening on {url} (Ctrl-C to stop)")
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
