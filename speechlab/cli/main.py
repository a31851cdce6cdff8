"""The command `speechlab`: thin doors to the modules, one function a subcommand.

Exit codes: 0 done, 1 done but a known value was not met or a file failed, 2 bad input,
130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from speechlab.cli import training
from speechlab.errors import UserError
from speechlab.version import __version__

N_REASONS = 3  # of files that failed, to print; their rows have the others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"speechlab: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("speechlab: interrupted", file=sys.stderr)
        return 130


def doctor(options: argparse.Namespace) -> None:
    from speechlab.cli.doctor import report

    print(report())


def list_weights(options: argparse.Namespace) -> None:
    from speechlab.weights import hub

    print(hub.table().to_string(index=False))


def download_weights(options: argparse.Namespace) -> None:
    from speechlab.weights import hub

    names = options.names or [file.name for file in hub.published(options.system)]
    for name in names:
        print(hub.download(name))


def import_weights(options: argparse.Namespace) -> None:
    from speechlab.models.macs import n_params
    from speechlab.weights.checkpoints import import_checkpoint

    changes = {"normalize": options.normalize} if options.normalize else {}
    model = import_checkpoint(options.source, options.target, options.system, **changes)
    print(f"{options.target}: {type(model).__name__}, {n_params(model):,} parameters")


def enhance(options: argparse.Namespace) -> int:
    from speechlab.inference.enhance import enhance_all, load_causal
    from speechlab.weights import checkpoints

    if options.stream and options.pcs:
        raise UserError(
            "--pcs needs the level of the whole file, which no stream has: leave one out"
        )
    results = enhance_all(
        (load_causal if options.stream else checkpoints.load)(options.checkpoint),
        options.inputs,
        options.output,
        mix=options.mix,
        subtype=options.subtype,
        post="pcs400" if options.pcs else "none",
        overwrite=options.overwrite,
        tell=_tell,
    )
    return _counted([result.status for result in results])


def separate(options: argparse.Namespace) -> int:
    from speechlab.inference.separate import CHUNK_S, separate_all
    from speechlab.weights import checkpoints

    results = separate_all(
        checkpoints.load(options.checkpoint),
        options.inputs,
        options.output,
        subtype=options.subtype,
        chunk_s=CHUNK_S if options.chunk_s is None else options.chunk_s,
        overwrite=options.overwrite,
        tell=_tell,
        level=options.level,
    )
    return _counted([result.status for result in results])


def _tell(line: str) -> None:
    """On stderr, above the bar."""
    from tqdm import tqdm

    tqdm.write(f"speechlab: {line}", file=sys.stderr)


def _counted(statuses: list[str]) -> int:
    """Print what became of the files of a batch; returns the exit code."""
    counts = (f"{statuses.count(status)} {status}" for status in ("ok", "skipped", "failed"))
    print(", ".join(counts))
    return 1 if "failed" in statuses else 0


def stream(options: argparse.Namespace) -> None:
    from speechlab.inference import devices, live
    from speechlab.inference.enhance import load_causal

    if options.list_devices:
        print(devices.table())
        return
    if options.checkpoint is None:
        raise UserError("stream needs --checkpoint; `speechlab weights list` has the published")
    model = load_causal(options.checkpoint)
    words = options.input, options.output, options.block_ms, sys.stderr, options.overwrite
    print(live.stream(model, *words))


def evaluate(options: argparse.Namespace) -> int:
    from speechlab.evaluation import summaries
    from speechlab.evaluation.evaluate import evaluate

    rows = evaluate(
        options.test_set,
        options.output,
        checkpoint=options.checkpoint,
        estimates=options.estimates,
        metrics=options.metrics,
        jobs=options.jobs,
        limit=options.limit,
        quantize=options.quantize,
    )
    print(summaries.summarise(rows).to_string(float_format="{:.4f}".format))
    means = summaries.means(rows)
    if "n_silent" in means and (n_silent := means["n_silent"].sum()):
        print(f"silent sources, left out: {n_silent}")
    print(f"rows: {options.output}")
    failed = summaries.failed(rows)
    for name in list(failed)[:N_REASONS]:
        _tell(f"{name}: {failed[name]}")
    if len(failed) > N_REASONS:
        more = len(failed) - N_REASONS
        _tell(f"{more} more failed; the column failed of {options.output} has the reasons")
    return 1 if failed else 0


def check_metrics(options: argparse.Namespace) -> int:
    from speechlab.evaluation.evaluate import check_metrics

    check = check_metrics(
        options.test_set, jobs=options.jobs, limit=options.limit, output=options.output
    )
    print(check)
    return 1 if check.passed is False else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechlab",
        description="Mamba models for speech enhancement and separation under one protocol.",
    )
    parser.add_argument("--version", action="version", version=f"speechlab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_doctor(commands)
    _add_weights(commands)
    _add_import(commands)
    _add_enhance(commands)
    _add_separate(commands)
    _add_stream(commands)
    _add_evaluate(commands)
    _add_check_metrics(commands)
    training.add(commands)
    return parser


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("doctor", help="versions, devices, kernels in use and why")
    command.set_defaults(run=doctor)


def _add_weights(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "weights",
        help="list or download the published weights",
        description="Files are verified by git blob id. SPEECHLAB_WEIGHTS names an offline folder.",
    )
    actions = command.add_subparsers(required=True, metavar="list|download")
    listing = actions.add_parser("list", help="every published file and whether it is here")
    listing.set_defaults(run=list_weights)
    download = actions.add_parser("download", help="fetch files from their authors' repositories")
    download.add_argument("names", nargs="*", metavar="NAME", help="default: all of --system")
    download.add_argument("--system", default="cleanumamba", help="default: %(default)s")
    download.set_defaults(run=download_weights)


def _add_import(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "import", help="convert published weights to .safetensors and a JSON configuration"
    )
    command.add_argument(
        "source",
        help="a published file, or its name in `weights list`; or a run's folder or .safetensors "
        "file, for another level",
    )
    command.add_argument("target", help="the .safetensors file to write; .json comes beside it")
    command.add_argument("--system", help="where the file does not tell which system it holds")
    levels = ("utterance", "running", "rms", "none")  # of `models.level`; each system has some
    command.add_argument("--normalize", choices=levels, help="another level than the published")
    command.set_defaults(run=import_weights)


def _add_enhance(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "enhance",
        help="clean files, and folders of files",
        description="Writes OUTPUT/RELATIVE PATH.wav at the input's rate, channels and length, and "
        "OUTPUT/enhance.csv. Interrupted and started again, it goes on. Exit code 1 where a file "
        "failed; the rest are done. Models work at 16 kHz: what a file has above 8 kHz goes. For "
        "recordings of minutes take Experiment_CleanU_Mamba2 or a large pruned model: the others "
        "forget how to denoise (README, Streaming).",
    )
    _add_batch(
        command,
        "a published name, a file, or the folder of a run",
        "do again what is there already",
    )
    command.add_argument(
        "--mix", type=float, default=1.0, help="0 the input .. 1 the estimate; default: 1"
    )
    command.add_argument(
        "--stream", action="store_true", help="what a live stream would give: a causal level"
    )
    command.add_argument(
        "--pcs", action="store_true", help="stretch the contrast of the estimate; its level stays"
    )
    command.set_defaults(run=enhance)


def _add_separate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "separate",
        help="a file of each speaker, of mixtures and folders of mixtures",
        description="Writes OUTPUT/s1/RELATIVE PATH.wav, OUTPUT/s2/... at the input's rate, "
        "channels and length, and OUTPUT/separate.csv; `evaluate --estimates OUTPUT` scores them. "
        "Interrupted and started again, it goes on. Exit code 1 where a file failed; the rest are "
        "done. Which speaker is s1 is the model's choice, kept throughout a file and in all its "
        "channels, each of which is separated alone. That holds through pauses of any length, "
        "unless the model leaves much of one speaker in another's file: with pauses of 20 s, three "
        "speakers with -14 dB of each other were not exchanged, with -10 dB up to twice in 10 "
        "minutes. Soft and loud recordings come apart alike: a model without a level of its own "
        "gets each channel of a file with a peak of 0.9, and its estimates are scaled back. Most "
        "separators work at 8 kHz: what a file has above 4 kHz goes.",
    )
    _add_batch(
        command,
        "the folder of a run, or its .safetensors file; none is published",
        "do again what is there already, if separate.csv tells that it was made here: other files "
        "are refused all the same",
    )
    command.add_argument(
        "--level",
        choices=("mixture", "model"),
        default="mixture",
        help="mixture: each speaker has one gain (and sign) in a file, with which they add up to "
        "the mixture; model: as the model has it, in the mixture's scale, and --subtype FLOAT "
        "keeps what full scale cuts; default: mixture",
    )
    command.add_argument(
        "--chunk-s",
        type=float,
        metavar="SECONDS",
        help="in the model at once, where it does not stream; longer files go through in chunks "
        "that overlap; a model that was trained on much shorter segments may do better with about "
        "as long chunks as these; default: 30",
    )
    command.set_defaults(run=separate)


def _add_batch(command: argparse.ArgumentParser, checkpoint: str, overwrite: str) -> None:
    """checkpoint, overwrite: what the help says of them."""
    command.add_argument("inputs", nargs="+", metavar="FILE_OR_DIR", help='or a "pattern/**/*.wav"')
    command.add_argument("--checkpoint", required=True, help=checkpoint)
    command.add_argument("--output", required=True, help="the folder to write to")
    command.add_argument("--subtype", help="PCM_16, PCM_24, FLOAT, ...; default: the input's")
    command.add_argument("--overwrite", action="store_true", help=overwrite)


def _add_stream(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "stream",
        help="clean live: microphone or file in, loudspeaker or file out",
        description="Devices need the extra: pip install 'speechlab[live]'. Ctrl-C ends it.",
    )
    command.add_argument("--checkpoint", help="a file, or a published name")
    command.add_argument("--input", metavar="FILE|DEVICE", help="default: the default microphone")
    command.add_argument("--output", metavar="FILE|DEVICE", help="default: the default loudspeaker")
    command.add_argument("--block-ms", type=float, default=16.0, help="default: %(default)g")
    command.add_argument("--overwrite", action="store_true", help="replace an output file")
    command.add_argument("--list-devices", action="store_true", help="and end")
    command.set_defaults(run=stream)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a checkpoint, a folder of estimates or the noisy files of a test set",
        description="Writes one CSV row per file; with several sources one per speaker, in the "
        "best order of each mixture. Interrupt at any time and rerun the command to resume. Exit "
        "code 1 where a file or one of its metrics failed; the others are scored.",
    )
    command.add_argument(
        "test_set", help="a folder with noisy/ and clean/, or mix/ (or mix_clean/, ...), s1/, s2/"
    )
    command.add_argument("--output", required=True, help="the CSV file to write")
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint",
        help="score this model: a published name, a file, or the folder of a run; unlike "
        "`separate`, mixtures are not scaled for a separator without a level; default without "
        "--estimates: score the noisy files or mixtures",
    )
    source.add_argument(
        "--estimates",
        help="a folder of files with the names of the noisy files; of mixtures in s1/, s2/",
    )
    command.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="default: all; of mixtures the usual ones"
    )
    command.add_argument(
        "--quantize", choices=("int16", "float"), help="default: int16; of mixtures float"
    )
    _add_work(command)
    command.set_defaults(run=evaluate)


def _add_check_metrics(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "check-metrics",
        help="score the noisy files of a test set and compare with their known row",
        description="Exit code 1 where a mean differs from its known value by more than 0.02, or a "
        "file failed.",
    )
    command.add_argument("test_set", help="a folder with noisy/ and clean/")
    command.add_argument(
        "--output", help="a CSV file for the rows; an interrupted run resumes from it"
    )
    _add_work(command)
    command.set_defaults(run=check_metrics)


def _add_work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--jobs", type=int, help="processes; default: one per processor")
    command.add_argument("--limit", type=int, help="only the first files of the set")
