"""The corpora by name, and their folders."""

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from speechlab.data import manifest
from speechlab.data.corpora.corpus import Corpus
from speechlab.errors import UserError, meant, unknown

_LISTED = (
    Corpus(
        name="synthetic",
        title="Synthetic speech, noise and rooms",
        licence="MIT, as this repository; spoken by espeak-ng, a program under GPL-3.0-or-later",
        source="made here, by speechlab/data/corpora/synthetic.py",
        gigabytes=0.1,
        layout="nothing is needed beforehand",
        options="SyntheticConfig",
    ),
    Corpus(
        name="voicebank_demand",
        title="VoiceBank-DEMAND, 28 speakers",
        licence="CC BY 4.0",
        source="doi 10.7488/ds/2117",
        gigabytes=2.3,
        layout="raw/clean_trainset_28spk_wav/   p226_001.wav … (48 kHz; at any depth)\n"
        "raw/noisy_trainset_28spk_wav/   the same names\n"
        "raw/clean_testset_wav/          p232_001.wav …\n"
        "raw/noisy_testset_wav/          the same names\n"
        "raw/logfiles/                   log_trainset_28spk.txt …: SNR (optional)\n"
        "raw/trainset_28spk_txt/, testset_txt/   transcripts (optional)",
        options="VoiceBankDemandConfig",
    ),
    Corpus(
        name="dns2020",
        title="DNS-2020, synthesised, with the no_reverb test set",
        licence="CC BY 4.0 (challenge, AudioSet), public domain (LibriVox), CC0 (Freesound), "
        "ODbL 1.0 (PTDB-TUG, test), CC BY-SA 3.0 (DEMAND, test)",
        source="github.com/microsoft/DNS-Challenge, branch interspeech2020/master",
        gigabytes=116.0,
        layout="raw/datasets/clean/   book_00000_chp_0009_reader_06709_11.wav …\n"
        "raw/datasets/noise/   --9VR_F7CtY.wav …\n"
        "raw/datasets/test_set/synthetic/no_reverb/noisy/   …_fileid_0.wav\n"
        "raw/datasets/test_set/synthetic/no_reverb/clean/   clean_fileid_0.wav",
        options="Dns2020Config",
    ),
    Corpus(
        name="libri2mix",
        title="Libri2Mix",
        licence="metadata MIT; LibriSpeech CC BY 4.0; WHAM! noise CC BY-NC 4.0 (with noise)",
        source="github.com/JorisCos/LibriMix, openslr.org/12, wham.whisper.ai",
        gigabytes=6.3,
        layout="metadata/libri2mix_train-clean-100.csv, libri2mix_dev-clean.csv, …_test-clean.csv\n"
        "librispeech/dev-clean/3536/8226/3536-8226-0026.flac …; train-clean-100/, test-clean/\n"
        "wham_noise/cv/20oo0109_0.72115_01ua010r_-0.72115.wav …; tr/, tt/ (for noise)",
        options="Libri2MixConfig",
    ),
    Corpus(
        name="wsj0_2mix",
        title="WSJ0-2mix",
        licence="LDC user agreement (LDC93S6A), bought from the LDC",
        source="catalog.ldc.upenn.edu/LDC93S6A; lists: merl.com/demos/deep-clustering, pywsj0-mix",
        gigabytes=6.0,
        layout="raw/wav8k/min/tr/mix/   40na010x_1.9857_01to030v_-1.9857.wav …; also max, wav16k\n"
        "raw/wav8k/min/tr/s1/, s2/   the same names; and cv/, tt/ as tr/\n"
        "or  wsj0/wsj0/si_tr_s/40n/40na010x.wav …, si_dt_05/, si_et_05/ (or .wv1)\n"
        "    lists/mix_2_spk_tr.txt, mix_2_spk_cv.txt, mix_2_spk_tt.txt, activlev/*.txt",
        options="Wsj0TwoMixConfig",
    ),
    Corpus(
        name="two_speakers",
        title="Two speakers, from another corpus",
        licence="that of the source",
        source="a prepared corpus",
        gigabytes=0.1,
        layout="source: a prepared corpus with speech of named speakers, as data/synthetic",
        options="TwoSpeakersConfig",
        former="two_talkers",
    ),
    Corpus(
        name="two_speakers_noisy",
        title="Two speakers in a room, with noise, from another corpus",
        licence="that of the source",
        source="a prepared corpus",
        gigabytes=0.1,
        layout="source: a prepared corpus with speech of named speakers, noise, as data/synthetic",
        module="two_speakers",
        options="NoisyTwoSpeakersConfig",
        former="two_talkers_noisy",
    ),
    Corpus(
        name="folder",
        title="Own recordings",
        licence="the user's own",
        source="the user's own",
        gigabytes=0.0,
        layout="raw/noisy/anna_001.wav …, raw/clean/anna_001.wav …   pairs; prefix: speaker\n"
        "or  raw/speech/anna_001.wav …, raw/noise/street.wav …   to be mixed while training\n"
        "or  raw/train/…, raw/dev/…, raw/test/… (optional), each laid out as one of these",
        options="FolderConfig",
    ),
)
CORPORA = {corpus.name: corpus for corpus in _LISTED}
LOG = logging.getLogger(__name__)
DATA = Path("data")  # folder of a corpus named without one
FORMER = {corpus.former: corpus.name for corpus in CORPORA.values() if corpus.former}


def current(name: str) -> str:
    """The name of a corpus today, given that or its former name; another word stays as it is."""
    return FORMER.get(name, name)


def lookup(name: str) -> Corpus:
    """A corpus by its name, or by its former name. UserError for an unknown name."""
    name = current(name)
    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return CORPORA[name]


def where(corpus: str) -> Path:
    """The prepared folder of a corpus, given as a path or as a name in data/.

    A relative path starts here or in the folder that holds data/: a notebook then finds the corpora
    of a training that was started in the root of the repository.
    """
    paths = Path(corpus), DATA.parent / corpus
    return next((path for path in paths if path.is_dir()), folder_of(corpus, DATA))


def folder_of(name: str, parent: Path) -> Path:
    """The folder of a corpus in `parent`, prepared or not.

    A corpus that has another name since version 0.1 may be under its former name, which is logged.
    """
    folder = parent / name
    if folder.is_dir() or current(name) not in CORPORA:
        return folder
    corpus = lookup(name)
    known = [parent / known for known in (corpus.name, corpus.former) if known]
    found = next((folder for folder in known if folder.is_dir()), known[0])
    if found.name == corpus.former:
        _log_former(found, corpus.name)
    return found


def prepared(names: Iterable[str]) -> tuple[Path, ...]:
    """The folders of prepared corpora. UserError where one is missing, with the fix."""
    folders = []
    for name in names:
        folder = where(name)
        folders.append(folder)
        if (folder / manifest.ABOUT).exists():
            continue
        if current(name) in CORPORA:
            fix = f"run `speechlab data prepare {lookup(name).name}`"
            raise UserError(f"{folder}: not there yet; {fix}")
        raise UserError(
            f"no corpus '{name}': neither a prepared folder nor one of {', '.join(CORPORA)}"
            f"{meant(name, CORPORA)}"
        )
    return tuple(folders)


@cache
def _log_former(folder: Path, name: str) -> None:
    LOG.warning("%s: corpus %s under its former name", folder, name)


def shortest(folder: Path) -> str:
    """What to call a prepared folder: its name, if it is in data/."""
    return folder.name if folder.parent == DATA else str(folder)
