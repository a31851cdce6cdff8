"""enhance, separate, stream: a model on files or on a live signal."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from speechlab.cli.options import (
    add_device,
    add_state_leak,
    check_checkpoint,
    check_inputs,
    overrides,
)
from speechlab.cli.output import tell
from speechlab.errors import UserError
from speechlab.weights.own import RECOMMENDED

if TYPE_CHECKING:
    from speechlab.inference.batch import Result
    from speechlab.models.base import Model

LOG = logging.getLogger(__name__)
NAMED = "a name in `weights list`, a file, or the folder of a run"
CHUNK_S = 30.0  # seconds, of `separate`


def enhance(options: argparse.Namespace) -> int:
    if options.stream and options.pcs:
        raise UserError("--pcs needs the level of the whole file, and a stream has none: omit one")
    if not 0 <= options.mix <= 1:
        raise UserError(f"--mix is {options.mix:g}; it must be from 0 (input) to 1 (estimate)")
    check_checkpoint(options.checkpoint)
    check_inputs(options.inputs)
    from speechlab.inference.enhance import enhance_all, load_causal
    from speechlab.weights import checkpoints

    load = load_causal if options.stream else checkpoints.load
    model = load(options.checkpoint, **overrides(options))
    _log_decisions(model, options)
    results = enhance_all(
        model,
        options.inputs,
        options.output,
        mix=options.mix,
        subtype=options.subtype,
        post="pcs400" if options.pcs else "none",
        level=options.level,
        overwrite=options.overwrite,
        tell=tell,
        device=options.device,
    )
    return _exit_code(results)


def separate(options: argparse.Namespace) -> int:
    check_checkpoint(options.checkpoint)
    check_inputs(options.inputs)
    from speechlab.inference.separate import separate_all
    from speechlab.weights import checkpoints

    model = checkpoints.load(options.checkpoint)
    _log_decisions(model, options)
    results = separate_all(
        model,
        options.inputs,
        options.output,
        subtype=options.subtype,
        chunk_s=options.chunk_s,
        overwrite=options.overwrite,
        tell=tell,
        level=options.level,
        input_level=options.input_level,
        device=options.device,
    )
    return _exit_code(results)


def _log_decisions(model: "Model", options: argparse.Namespace) -> None:
    """What -v prints before the work."""
    if not LOG.isEnabledFor(logging.INFO):
        return
    from speechlab.audio.level import LEVELS
    from speechlab.models.device import find
    from speechlab.models.macs import n_params
    from speechlab.weights.hub import locate

    kind = f"{type(model).__name__}, {n_params(model):,} parameters, {model.sample_rate} Hz"
    LOG.info("model: %s, from %s", kind, locate(options.checkpoint))
    LOG.info("device: %s", find(options.device))
    of_model = next(name for name, level in LEVELS.items() if level is model.level)
    LOG.info("level: %s; of the model: %s", options.level, of_model)


def _exit_code(results: "list[Result]") -> int:
    """1 if a file failed; prints how many files have which status."""
    statuses = [result.status for result in results]
    counts = (f"{statuses.count(status)} {status}" for status in ("ok", "skipped", "failed"))
    print(", ".join(counts))
    return 1 if "failed" in statuses else 0


def stream(options: argparse.Namespace) -> None:
    if not options.list_devices:
        check_checkpoint(options.checkpoint)
    from speechlab.inference import devices, live
    from speechlab.inference.enhance import load_causal
    from speechlab.models.device import moved

    if options.list_devices:
        print(devices.table())
        return
    model = moved(load_causal(options.checkpoint, **overrides(options)), options.device)
    _log_decisions(model, options)
    line = live.stream(
        model,
        options.input,
        options.output,
        options.block_ms,
        sys.stderr,
        options.overwrite,
        options.level,
    )
    print(line)


def add(commands: argparse._SubParsersAction) -> None:
    _add_enhance(commands)
    _add_separate(commands)
    _add_stream(commands)


def _add_enhance(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "enhance",
        help="enhance files and folders of files",
        description="Writes OUTPUT/RELATIVE PATH.wav with the sample rate, channels and length of "
        "the input, and a log, OUTPUT/enhance.csv. Interrupt at any time and rerun the command to "
        "resume; a file that has changed is processed again. Exit code 1 if a file failed; the "
        "others are done. Models work at 16 kHz: output has nothing above 8 kHz. For recordings of "
        "minutes use Experiment_CleanU_Mamba with --state-leak 20, and do not use "
        "Experiment_CleanU_MHA: their noise suppression degrades (README, Long input).",
    )
    _add_batch(
        command,
        f"{NAMED}; default: {RECOMMENDED}",
        "a folder; for one input file also a file, .wav, .flac, .ogg or .mp3",
        RECOMMENDED,
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="process finished files of enhance.csv again; other existing files are refused",
    )
    command.add_argument(
        "--mix", type=float, default=1.0, help="0 (input) to 1 (estimate); default: %(default)g"
    )
    command.add_argument(
        "--stream", action="store_true", help="use a causal level, as a live stream does"
    )
    command.add_argument(
        "--pcs", action="store_true", help="apply perceptual contrast stretching; keep the level"
    )
    _add_level(
        command,
        "robust: the offset (DC) is taken out before the model and added after it; a bang, long "
        "silence or soft input does not change the level that the model works at. With --stream: "
        "as in `speechlab stream`. published: the level of the papers' tables",
    )
    add_state_leak(command)
    command.set_defaults(run=enhance)


def _add_separate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "separate",
        help="separate mixtures into one file per speaker",
        description="Writes OUTPUT/s1/RELATIVE PATH.wav, OUTPUT/s2/... with the sample rate, "
        "channels and length of the input, and a log, OUTPUT/separate.csv; `evaluate --estimates "
        "OUTPUT` scores them. Interrupt at any time and rerun the command to resume; a mixture "
        "that has changed is processed again. Exit code 1 if a file failed; the others are done. "
        "The model chooses which speaker is s1. The order is the same in the whole file and in all "
        "channels; each channel is separated alone. The order stays correct through long pauses "
        "unless speakers leak into each other's files. Measured with three speakers and pauses of "
        "20 s: no exchange at a leakage of -14 dB, up to two in 10 minutes at -10 dB. Levels do "
        "not matter: for a model without a level, each channel is scaled to a peak of 0.9 and its "
        "estimates are scaled back. Most separators work at 8 kHz: output has nothing above 4 kHz.",
    )
    _add_batch(
        command,
        "the folder of a run, or its .safetensors file; none is published",
        "a folder; for one input file also a file: out.wav stands for out_s1.wav, out_s2.wav, ...",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="process finished files of separate.csv again; other existing files are refused",
    )
    command.add_argument(
        "--level",
        choices=("mixture", "model"),
        default="mixture",
        help="mixture: one gain (and sign) per speaker and file, so that speakers add up to the "
        "mixture. model: the model's own levels; --subtype FLOAT keeps samples beyond full scale. "
        "Default: mixture",
    )
    _add_level(
        command,
        "robust: a bang, long silence or soft input does not change the level that the model works "
        "at. published: the level or the peak of the whole file",
        "--input-level",
    )
    command.add_argument(
        "--chunk-s",
        type=float,
        default=CHUNK_S,
        metavar="SECONDS",
        help="longest input of a model that does not stream. Longer files are processed in "
        "overlapping chunks. If the model was trained on much shorter segments, try that length. "
        "Default: %(default)g",
    )
    command.set_defaults(run=separate)


def _add_batch(
    command: argparse.ArgumentParser, checkpoint: str, output: str, default: str | None = None
) -> None:
    command.add_argument("inputs", nargs="+", metavar="FILE_OR_DIR", help='or a "pattern/**/*.wav"')
    required = default is None
    command.add_argument("-c", "--checkpoint", required=required, default=default, help=checkpoint)
    command.add_argument("-o", "--output", required=True, help=output)
    command.add_argument("--subtype", help="PCM_16, PCM_24, FLOAT, ...; default: the input's")
    add_device(command)


def _add_level(command: argparse.ArgumentParser, text: str, name: str = "--level") -> None:
    choices = ("robust", "published")
    command.add_argument(
        name, choices=choices, default="robust", help=f"{text}. Default: %(default)s"
    )


def _add_stream(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "stream",
        help="enhance live: microphone or file in, loudspeaker or file out",
        description="Devices need the extra `live`: run pip install -e '.[live]' in the "
        "repository. Stop with Ctrl-C.",
    )
    command.add_argument(
        "-c", "--checkpoint", default=RECOMMENDED, help=f"{NAMED}; default: %(default)s"
    )
    command.add_argument("--input", metavar="FILE|DEVICE", help="default: the default microphone")
    command.add_argument(
        "-o", "--output", metavar="FILE|DEVICE", help="default: the default loudspeaker"
    )
    _add_level(
        command,
        "robust: a high-pass (first order, 3 Hz, no delay) removes the offset, and after a glitch "
        "the level is right again within a second. published: as in the tables of the study",
    )
    add_state_leak(command)
    command.add_argument("--block-ms", type=float, default=16.0, help="default: %(default)g")
    command.add_argument("--overwrite", action="store_true", help="replace an output file")
    add_device(command)
    command.add_argument("--list-devices", action="store_true", help="list audio devices and exit")
    command.set_defaults(run=stream)
