"""Link real recordings into the layout of the corpus `folder`, with train and dev disjoint.

    python examples/lay_out_folder.py SHARED/audio raw
    speechlab data prepare folder --set raw=raw --set speakers=folder

The audio folder has speech/train, speech/dev, noise/train and pairs/voicebank_demand_train; its
README says what each may be used for. Test folders are not read.
"""

import sys
from pathlib import Path

HELD_OUT = (  # dev noise: that of the dev pairs, one fold of ESC-10, one file of each other source
    "vbdemand_residual_*",
    "esc10_*_4-*",
    "berlin_A7B4879B",
    "blanket_storm",
    "max_applause",
    "mycroft_bg9",
)


def main(audio: Path, raw: Path) -> None:
    """Link what is in `audio` into `raw`/{train,dev}/{speech,noise,noisy,clean}."""
    n_linked = 0
    for split in ("train", "dev"):
        for path in sorted((audio / "speech" / split).rglob("*.ogg")):
            link(path, raw / split / "speech" / path.relative_to(audio / "speech" / split))
            n_linked += 1
    for path in sorted((audio / "noise" / "train").glob("*.flac")):
        split = "dev" if any(Path(path.stem).match(pattern) for pattern in HELD_OUT) else "train"
        link(path, raw / split / "noise" / path.name)
        n_linked += 1
    for kind in ("noisy", "clean"):
        for path in sorted((audio / "pairs" / "voicebank_demand_train" / kind).glob("*.flac")):
            speaker = path.stem.partition("_")[0]
            link(path, raw / "dev" / kind / speaker / path.name)
            n_linked += 1
    if not n_linked:
        sys.exit(f"{audio}: has no speech/train, noise/train or pairs; give the audio folder")
    print(f"{raw}: {n_linked} recordings")


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/lay_out_folder.py AUDIO RAW")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
