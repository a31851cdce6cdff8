"""What `separate_file` refuses before it writes: wrong models, its own input among the targets."""

import pytest

from speechlab.audio import files
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.inference import separate
from speechlab.inference.separate import separate_blocks, separate_file
from speechlab.models.sepmamba import SepMamba
from tests.inference.test_separate import WHOLE, noise, tiny


class Wrong(SepMamba):
    """Gives other shapes than it tells."""

    cut, n_sources = 0, 2  # samples that are missing

    def network(self, x, state, last):
        x, state = super().network(x, state, last)
        return x[..., self.cut if last else 0 :], state


@pytest.mark.parametrize("level", separate.LEVELS)
@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize(("cut", "n_sources"), [(1, 3), (0, 2)])
def test_a_model_of_wrong_shapes_is_one_line(tmp_path, direction, level, cut, n_sources):
    """Neither a sample nor a talker too few, and in no file."""
    model = Wrong(override(WHOLE, direction=direction)).eval()
    model.cut, model.n_sources = cut, n_sources
    files.save(tmp_path / "in.wav", noise(1, 20000), 8000)
    told = r"in\.wav: Wrong gave \(1, 3, \d+\) .* \(1, [23], \d+\)"
    targets = [tmp_path / f"s{i}.wav" for i in range(n_sources)]
    for chunk_s in (1.0, 4.0):
        with pytest.raises(UserError, match=told):
            separate_file(model, tmp_path / "in.wav", targets, chunk_s=chunk_s, level=level)
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]
    with pytest.raises(UserError, match=r"^the mixture: Wrong gave"):
        list(separate_blocks(model, [noise()]))


def test_a_file_is_not_written_over_itself(tmp_path):
    model = tiny()
    source, other = tmp_path / "x.wav", tmp_path / "y.wav"
    files.save(source, noise(), 8000)
    (tmp_path / "link.wav").hardlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "." / "x.wav", tmp_path / "link.wav"):
        with pytest.raises(UserError, match="wav: is the input, and would be overwritten"):
            separate_file(model, source, [other, target])
    for targets in ([other], [other, other]):
        with pytest.raises(UserError, match="2 talkers, each in a file of its own"):
            separate_file(model, source, targets)
    assert source.read_bytes() == before and not other.exists()
