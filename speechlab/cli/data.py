"""data: list, describe and prepare corpora."""

import argparse
from pathlib import Path

from speechlab.cli.options import add_set, assigned
from speechlab.cli.output import print_settings, print_table, say
from speechlab.data import manifest
from speechlab.data.corpora import catalogue
from speechlab.errors import UserError


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
    from speechlab.config import override

    corpus.prepare(folder, override(corpus.config(), **changes), say)
    if options.folder:
        name = catalogue.shortest(folder)
        say(f"to train on it: speechlab train EXPERIMENT --set 'corpora=[\"{name}\"]'")


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("data", help="list, describe or prepare corpora")
    actions = command.add_subparsers(required=True, metavar="list|show|prepare")
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
    add_set(prepare, "n_train=100; `data show CORPUS` lists all")
    prepare.set_defaults(run=prepare_data)
