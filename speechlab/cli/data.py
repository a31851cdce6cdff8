"""data: list, describe, prepare and verify corpora."""

import argparse
import time
from pathlib import Path

from speechlab.cli.options import add_set, assigned
from speechlab.cli.output import print_settings, print_table, say, tell
from speechlab.data import manifest
from speechlab.data.corpora import catalogue
from speechlab.errors import UserError, shown


def list_data(options: argparse.Namespace) -> None:
    rows = [
        {
            "corpus": name,
            "here": "yes" if (catalogue.where(name) / manifest.ABOUT).exists() else "no",
            "GB": corpus.gigabytes or None,
            "content": corpus.title,
        }
        for name, corpus in catalogue.CORPORA.items()
    ]
    print_table(rows)
    print("\nlicence, source, layout and options: speechlab data show CORPUS")


def show_data(options: argparse.Namespace) -> None:
    corpus = catalogue.lookup(options.name)
    print(f"{corpus.title}\nsource: {corpus.source}\nlicence: {corpus.licence}")
    print(f"about {corpus.gigabytes:g} GB\n\n{corpus.layout}\n\noptions (--set KEY=VALUE):")
    print_settings(corpus.config())


def prepare_data(options: argparse.Namespace) -> None:
    corpus, changes = catalogue.lookup(options.name), assigned(options.set)
    default = catalogue.folder_of(options.name, catalogue.DATA)
    folder = Path(options.folder) if options.folder else default
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    changes |= {"skip_broken": True} if options.skip_broken else {}
    from speechlab.config import override

    corpus.prepare(folder, override(corpus.config(), **changes), say)
    if options.folder:
        name = catalogue.shortest(folder)
        say(f"to train on it: speechlab train EXPERIMENT --set 'corpora=[\"{name}\"]'")


def verify_data(options: argparse.Namespace) -> int:
    folder = catalogue.where(options.folder)
    about = manifest.about(folder)
    from speechlab.data import digests
    from speechlab.data.corpora import prepare, survey
    from speechlab.progress import Report

    begun, noted = time.time_ns(), digests.everything(folder)
    with Report("verify", len(noted)) as report:
        found = list(digests.compared(folder, noted, lambda path: report.update()))
    counts = dict.fromkeys(digests.KINDS, 0)
    for kind, path in found:
        counts[kind] += 1
        if kind != "unknown":
            print(f"{kind}: {shown(path)}")
    n_unknown = counts.pop("unknown")
    counts = {"files": len(noted), **counts}
    print(f"{shown(folder)}: {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    if n_unknown:
        version = about.get("speechlab", "an earlier version")
        tell(
            f"{n_unknown} files cannot be verified: speechlab {version} noted no digest of them; "
            "prepare the corpus again"
        )
    if line := survey.new_sources(folder, folder / prepare.RAW):
        tell(line)
    if any(kind != "unknown" for kind, _ in found):
        return 1
    digests.note_time(folder, begun)
    return 0


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("data", help="list, describe, prepare or verify corpora")
    actions = command.add_subparsers(required=True, metavar="list|show|prepare|verify")
    listing = actions.add_parser("list", help="all corpora: prepared or not, size, content")
    listing.set_defaults(run=list_data)
    show = actions.add_parser("show", help="one corpus: source, licence, layout, options")
    show.add_argument("name", metavar="CORPUS", help="a name in `data list`")
    show.set_defaults(run=show_data)
    prepare = actions.add_parser(
        "prepare",
        help="generate, download or convert a corpus",
        description="Interrupt at any time and rerun the command to resume.",
    )
    prepare.add_argument("name", metavar="CORPUS", help="a name in `data list`")
    prepare.add_argument("--folder", help="default: data/CORPUS")
    prepare.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave broken source files out; left_out.txt in the prepared folder names them",
    )
    add_set(prepare, "n_train=100; `data show CORPUS` lists all")
    prepare.set_defaults(run=prepare_data)
    verify = actions.add_parser(
        "verify",
        help="compare every file of a prepared corpus with its digest",
        description="Reads every file and prints one line for each changed, missing or extra one. "
        "Exit code 1 where there is one.",
    )
    verify.add_argument("folder", metavar="FOLDER", help="a prepared folder, or a name in data/")
    verify.set_defaults(run=verify_data)
