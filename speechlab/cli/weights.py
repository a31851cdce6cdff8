"""weights, import: published weights and their conversion."""

import argparse

from speechlab.cli.options import add_state_leak, check_checkpoint, overrides
from speechlab.cli.output import print_table, say
from speechlab.errors import UserError


def list_weights(options: argparse.Namespace) -> None:
    from speechlab.weights import hub

    print_table(hub.table())
    print("\nMB, n_params, pesq_wb: of the files that were measured here; pesq_wb is the mean over")
    print("DNS-2020 no_reverb, higher is better (results/tables). where: the copy on this machine.")
    print(f"from github.com: {', '.join(hub.sources())}")


def download_weights(options: argparse.Namespace) -> None:
    from speechlab.weights import hub

    names = options.names or [file.name for file in hub.published(options.system)]
    for name in names:
        say(hub.download(name))


def import_weights(options: argparse.Namespace) -> None:
    check_checkpoint(options.source)
    if not options.target.endswith(".safetensors"):
        raise UserError(f"{options.target}: the target must end in .safetensors")
    from speechlab.models.macs import n_params
    from speechlab.weights.checkpoints import import_checkpoint

    changes = overrides(options) | ({"normalize": options.normalize} if options.normalize else {})
    model = import_checkpoint(options.source, options.target, options.system, **changes)
    say(f"{options.target}: {type(model).__name__}, {n_params(model):,} parameters")


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "weights",
        help="list or download published weights",
        description="Files are verified by git blob id. SPEECHLAB_WEIGHTS names an offline folder.",
    )
    actions = command.add_subparsers(required=True, metavar="list|download")
    listing = actions.add_parser("list", help="all published files and their local copies")
    listing.set_defaults(run=list_weights)
    download = actions.add_parser("download", help="download files from the authors' repositories")
    download.add_argument("names", nargs="*", metavar="NAME", help="default: all of --system")
    download.add_argument("--system", default="cleanumamba", help="default: %(default)s")
    download.set_defaults(run=download_weights)
    command = commands.add_parser(
        "import", help="convert published weights to .safetensors and a JSON configuration"
    )
    command.add_argument(
        "source",
        help="a published file or its name in `weights list`; or the folder or .safetensors file "
        "of a run, to change its level or leak",
    )
    command.add_argument("target", help="the .safetensors file; its .json is written next to it")
    command.add_argument("--system", help="needed if the file does not name its system")
    levels = ("utterance", "running", "rms", "none")  # names in audio.level; a system has some
    command.add_argument("--normalize", choices=levels, help="replace the published level")
    add_state_leak(command)
    command.set_defaults(run=import_weights)
