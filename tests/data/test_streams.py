"""Long streams: mixtures one after another, and between them the noise of the last one."""

import torch

from speechlab.data.mixing import MixtureConfig, Mixtures
from speechlab.data.splits import Corpora
from speechlab.data.streams import joined, long_stream
from tests.support import toy_corpus


def test_a_stream_is_its_mixtures_and_pauses(tmp_path):
    """A function of (seed, index); a pause longer than its noise plays it to and fro."""
    of_kind = Corpora([toy_corpus.prepared(tmp_path / "toy")]).read("dev")
    config = MixtureConfig(segment_s=0.25, silence_db=-90.0)
    mixtures = Mixtures(of_kind["speech"], of_kind["noise"], [], config, 9)
    stream = long_stream(mixtures, 2.0, seed=3, index=1, pause_s=(0.1, 0.6))
    length, pauses = round(0.25 * 16000), []
    after = [begin for begin, _ in stream.clips[1:]] + [stream.noisy.shape[-1]]
    for i, (begin, end) in enumerate(stream.clips):
        mixture = mixtures.mixture(3, 1, i)
        assert end - begin == length
        assert torch.equal(stream.noisy[:, begin:end], mixture.noisy)
        assert torch.equal(stream.clean[:, begin:end], mixture.clean)
        pause = stream.noisy[:, end : after[i]]
        assert not stream.clean[:, end : after[i]].any()
        to_and_fro = torch.cat([mixture.noise.flip(-1), mixture.noise, mixture.noise.flip(-1)], -1)
        assert torch.equal(pause, to_and_fro[:, : pause.shape[-1]])
        pauses.append(pause.shape[-1] / 16000)
    assert stream.clips[-1][1] >= 2.0 * 16000 > stream.clips[-2][1]
    assert min(pauses) >= 0.1 and max(pauses) <= 0.6 and max(pauses) > 0.25
    again = long_stream(mixtures, 2.0, seed=3, index=1, pause_s=(0.1, 0.6))
    assert torch.equal(again.noisy, stream.noisy)
    other = long_stream(mixtures, 2.0, seed=3, index=2, pause_s=(0.1, 0.6))
    assert not torch.equal(other.noisy[:, :length], stream.noisy[:, :length])


def test_pairs_are_joined_in_their_order():
    """Streams end with a whole pair; nothing is lost or added."""
    pairs = [(torch.full((1, n), float(n)), torch.full((1, n), -float(n))) for n in (3, 4, 5, 2)]
    streams = list(joined(pairs, n_samples=7))
    assert [stream.clips for stream in streams] == [[(0, 3), (3, 7)], [(0, 5), (5, 7)]]
    for at, wanted in ((0, pairs[:2]), (1, pairs[2:])):
        noisy, clean = (torch.cat(of, -1) for of in zip(*wanted, strict=True))
        assert torch.equal(streams[at].noisy, noisy) and torch.equal(streams[at].clean, clean)
