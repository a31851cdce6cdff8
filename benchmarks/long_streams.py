"""Does a model denoise as well after minutes of a stream as from rest?

    python benchmarks/long_streams.py CHECKPOINT … --corpus FOLDER [--set KEY=VALUE …]
        [--label NAME] [--streams N] [--minutes M] [--rows FILE.csv]

Streams are made of the dev recordings of a prepared corpus (`speechlab.data.streams`): another
speaker, noise, SNR and level every 6 s, and pauses. `--pairs` joins the pairs of a test set
instead, for the final numbers of a finished model. Every clip is scored three times with PESQ-WB:

    utterance   alone, divided by its own standard deviation, as in the published tables
    rest        alone, with the level of a stream
    stream      where it stands in the stream

`--set` changes a setting of the models, as state_leak_s=10; `--label` names the change. Rows that
the file has are not computed again. The last table gives the means, and what a stream loses to the
same clip from rest, with 95 % intervals over clips.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import speechlab
from speechlab.audio import files
from speechlab.audio.level import LEVELS
from speechlab.cli.options import assigned
from speechlab.data import test_sets
from speechlab.data.mixing import MixtureConfig, Mixtures
from speechlab.data.streams import LongStream, joined, long_stream
from speechlab.evaluation.dev_files import HEARD
from speechlab.evaluation.metrics import pesq_wb
from speechlab.evaluation.statistics import mean_interval
from speechlab.models.base import with_level
from speechlab.storage.atomic import sha256, write
from speechlab.study import launch
from speechlab.weights.hub import locate

ROWS = Path("results/local/long_streams.csv")
# digest: of the checkpoint; signals: what the streams are made of; number: of the stream
KEYS = ["checkpoint", "digest", "label", "signals", "number"]
LATE = 5  # minutes after which a stream is long
CONFIG = MixtureConfig(segment_s=6.0, snr_db=(-5.0, 20.0), level_db=(-37.0, -13.0))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--corpus", default="data/folder", help="a prepared corpus")
    parser.add_argument("--pairs", help="noisy/ and clean/ in its place: a test set, once")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--label", default="", help="of the rows; default: the settings")
    parser.add_argument("--streams", type=int, default=3, metavar="N")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M")
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FILE.csv")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    label, settings = options.label or " ".join(options.set), assigned(options.set)
    signals = f"{Path(options.pairs or options.corpus).name}, {options.minutes:g} min"
    rows = _empty()
    if options.rows.exists():
        rows = pd.read_csv(options.rows, keep_default_na=False, dtype={"digest": str, "label": str})
    if not {*KEYS} <= {*rows.columns}:
        parser.error(f"{options.rows}: lacks columns of {', '.join(KEYS)}; name another file")
    for index, signal in enumerate(tqdm(_streams(options), "streams", options.streams)):
        for checkpoint in options.checkpoints:
            digest = sha256(locate(checkpoint))[:8]
            named = Path(checkpoint).name, digest, label, signals, index
            key = dict(zip(KEYS, named, strict=True))
            if (rows[KEYS] == pd.Series(key)).all(axis=1).any():
                continue
            model = speechlab.load(checkpoint, normalize="running", **settings)
            new = pd.DataFrame(key | row for row in scored(model, signal))
            rows = new if rows.empty else pd.concat([rows, new], ignore_index=True)
            options.rows.parent.mkdir(parents=True, exist_ok=True)
            write(options.rows, rows.to_csv(index=False, float_format="%.6g"))
    print(summary(rows).to_string(index=False, float_format="%.3f"))


def _streams(options: argparse.Namespace) -> Iterator[LongStream]:
    if options.pairs:
        pairs = (
            (files.load(pair.mixture, 16000)[0], files.load(pair.sources[0], 16000)[0])
            for pair in test_sets.find(options.pairs)
        )
        n_samples = round(16000 * 60 * options.minutes)
        yield from itertools.islice(joined(pairs, n_samples), options.streams)
        return
    of_kind = launch.corpora([options.corpus]).read("dev")
    mixtures = Mixtures(of_kind["speech"], of_kind["noise"], [], CONFIG, 1)
    for index in range(options.streams):
        yield long_stream(mixtures, 60 * options.minutes, index=index)


def scored(model: torch.nn.Module, signal: LongStream) -> Iterator[dict[str, float]]:
    """A row per clip."""
    [whole] = HEARD["stream"](model, [signal.noisy])  # (1, T)
    as_published = with_level(model, LEVELS["utterance"])
    for i, (begin, end) in enumerate(signal.clips):
        noisy, clean = (x[None, :, begin:end] for x in (signal.noisy, signal.clean))
        with torch.inference_mode():
            estimates = {"utterance": as_published(noisy), "rest": model(noisy)}
        estimates |= {"stream": whole[None, :, begin:end], "noisy": noisy}
        row = {"clip": i, "minute": begin / model.sample_rate / 60}
        yield row | {name: _pesq(estimate, clean) for name, estimate in estimates.items()}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means by checkpoint, label and signals, and the losses of a stream with intervals."""
    lines = []
    for key, of in rows.groupby(KEYS[:-1], sort=False):
        late = of[of["minute"] >= LATE]
        loss, level = late["rest"] - late["stream"], of["utterance"] - of["rest"]
        line = dict(zip(KEYS[:-1], key, strict=True)) | {"clips": len(late)}
        line |= of[["noisy", "utterance", "rest"]].mean().to_dict()
        line |= {"stream, late": late["stream"].mean()}
        for name, values in {"loss, late": loss, "loss by level": level}.items():
            mean, low, high = mean_interval(values.to_numpy())[:3]
            line |= {name: mean, f"{name} 95 %": f"{low:.3f} to {high:.3f}"}
        lines.append(line)
    return pd.DataFrame(lines)


def _pesq(estimate: Tensor, clean: Tensor) -> float:
    return pesq_wb(estimate[0, 0].numpy(), clean[0, 0].numpy(), 16000)


def _empty() -> pd.DataFrame:
    return pd.DataFrame(columns=KEYS)


if __name__ == "__main__":
    main()
