"""Link real recordings into the layout of the corpus `folder`, with train and dev disjoint.

    python examples/lay_out_folder.py SHARED/audio raw
    speechlab data prepare folder --set raw=raw --set speakers=folder

The audio folder has speech and noise, each with train and dev, and pairs/voicebank_demand_train;
its README says what each may be used for. Test folders are not read.
"""

import sys
from pathlib import Path

SOUNDS = {".flac", ".ogg"}


def main(audio: Path, raw: Path) -> None:
    """Link what is in `audio` into `raw`/{train,dev}/{speech,noise,noisy,clean}."""
    n_linked = 0
    for split in ("train", "dev"):
        for kind in ("speech", "noise"):
            folder = audio / kind / split
            for path in sounds(folder):
                link(path, raw / split / kind / path.relative_to(folder))
                n_linked += 1
    for kind in ("noisy", "clean"):
        for path in sounds(audio / "pairs" / "voicebank_demand_train" / kind):
            speaker = path.stem.partition("_")[0]
            link(path, raw / "dev" / kind / speaker / path.name)
            n_linked += 1
    if not n_linked:
        sys.exit(f"{audio}: has no speech/train, noise/train or pairs; give the audio folder")
    print(f"{raw}: {n_linked} recordings")


def sounds(folder: Path) -> list[Path]:
    """Sound files in a folder and its sub-folders."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SOUNDS)


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/lay_out_folder.py AUDIO RAW")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
