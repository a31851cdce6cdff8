"""MP-SENet + Mamba: the small model, whose Mamba serves both axes."""

import pytest
import torch
from safetensors.torch import load_file

import speechlab
from speechlab.config import override
from speechlab.models.mpsenet_mamba import CONFIGS, MambaBlock, MPSENetMambaConfig


def test_one_mamba_for_both_axes_is_two_with_the_same_weights():
    torch.manual_seed(0)
    one = MambaBlock(MPSENetMambaConfig(d_model=4, mamba="both_axes"))
    two = MambaBlock(MPSENetMambaConfig(d_model=4, mamba="per_axis"))
    two.norm.load_state_dict(one.norm.state_dict())
    for scan in two.scans:
        scan.load_state_dict(one.scans[0].state_dict())
    assert (len(one.scans), len(two.scans)) == (1, 2)
    x = torch.randn(2, 4, 5, 3)
    assert torch.equal(one(x), two(x))


def small_state(shared):
    """The reference model's tensors, rewired as the small model has them."""
    state = load_file(shared / "golden/mpsenet_mamba/small_c16_1_2/state.safetensors")
    small = {n: t for n, t in state.items() if not n.startswith(("shared", "mag_ts"))}
    for name, tensor in state.items():
        if name.startswith("mag_ts_transformer.") and ".mamba_f." not in name:
            name = name.replace(".mamba_t.", ".mamba.")
            small[name] = tensor
            small[name.replace("mag_", "shared_")] = tensor
    return small


def test_the_small_model_is_read_off_its_tensors(shared, tmp_path):
    torch.save({"generator": small_state(shared)}, tmp_path / "g_small")
    model = speechlab.load(tmp_path / "g_small", system="mpsenet_mamba")
    assert model.config == override(CONFIGS["small"], d_model=16, axes="published")


@pytest.mark.parametrize("size", CONFIGS)
def test_sizes_build(size):
    with torch.device("meta"):
        speechlab.models.SYSTEMS["mpsenet_mamba"][1](CONFIGS[size])
