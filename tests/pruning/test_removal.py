"""Removal: the published weights, output and averages; laws of every group of every model.

A norm over channels (LayerNorm, RMSNorm) takes its mean over the channels that it has. So the law
of dead channels compares with a model whose norms leave them out of the mean; groups without such a
norm are compared with the model as it is.
"""

import random
import re

import pytest
import torch
from torch import Tensor

import speechlab
from speechlab.errors import UserError
from speechlab.inference.stream import Stream
from speechlab.models import SYSTEMS
from speechlab.models.macs import n_params
from speechlab.pruning import remove
from speechlab.pruning.removal import cut, cut_optimizer, sketch
from speechlab.weights.cleanumamba import cleanumamba
from tests.support.prunable import CONFIGS, built, has_norm, masked, noisy, some, system, zeroed

MOMENTS = ("exp_avg", "exp_avg_sq")
STREAMING = [name for name in CONFIGS if built(name).look_ahead is not None]


def close(estimate: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(estimate, wanted, rtol=0, atol=atol)


@torch.no_grad()
def test_published_state_and_output(golden):
    model, noisy = golden.model(), golden.read("signals")["noisy"]
    pruned, wanted = remove(model, golden.removed), golden.state("pruned_state")
    assert n_params(pruned) == golden.manifest["pruned"]["n_params"] == 11_905
    assert wanted.keys() == pruned.state_dict().keys()
    for name, tensor in pruned.state_dict().items():
        close(tensor, wanted[name])
    close(model(noisy), golden.read("signals")["estimate"])
    close(pruned(noisy), golden.read("pruned_signals")["estimate"])


@torch.no_grad()
def test_published_output_of_each_group_alone(golden):
    model, noisy = golden.model(), golden.read("signals")["noisy"]
    known = {group["name"]: group for group in golden.manifest["groups"]}
    for name, wanted in golden.read("estimates_each_group_alone").items():
        pruned = remove(model, {name: known[name]["removed"]})
        assert n_params(pruned) == known[name]["n_params_after"]
        close(pruned(noisy), wanted)


def test_published_averages_of_the_optimiser(golden):
    """Adam's after one step, cut and loaded into the Adam of the pruned model."""
    model, before = golden.model(), golden.read("adam")
    wanted = golden.read("pruned_adam")
    theirs = {cleanumamba.rename(name): name for name in golden.manifest["keys"]}
    adam = torch.optim.Adam(model.parameters())
    for name, parameter in model.named_parameters():
        moments = {kind: before[f"{kind}.{theirs[name]}"] for kind in MOMENTS}
        adam.state[parameter] = {"step": torch.tensor(1.0), **moments}
    pruned = remove(model, golden.removed)
    after = torch.optim.Adam(pruned.parameters())
    after.load_state_dict(cut_optimizer(adam.state_dict(), model, golden.removed))
    for name, parameter in pruned.named_parameters():
        for kind in MOMENTS:
            known = wanted[f"{kind}.{theirs[name]}"]
            torch.testing.assert_close(after.state[parameter][kind], known, rtol=1e-9, atol=0)
    pruned(torch.randn(1, 1, 200, dtype=torch.float64)).sum().backward()
    after.step()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_dead_channels_of_each_group_change_nothing(name):
    model = built(name)
    x = noisy(model)
    for group, removed in some(model).items():
        channels = {group: removed}
        dead = (masked if has_norm(model, group) else zeroed)(model, channels)
        close(remove(model, channels)(x), dead(x))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_any_order_is_the_same_model(name):
    """All groups at once, and one channel after another in a random order: bit for bit."""
    model = built(name)
    channels, x = some(model), noisy(model)
    once = remove(model, channels)
    close(once(x), masked(model, channels)(x))
    single = [(group, c) for group, removed in channels.items() for c in removed]
    stepwise, done = model, []
    for group, c in random.Random(name).sample(single, len(single)):
        before = sum(other == group and earlier < c for other, earlier in done)
        stepwise = remove(stepwise, {group: [c - before]})
        done.append((group, c))
    assert stepwise.config == once.config
    for key, tensor in once.state_dict().items():
        assert torch.equal(stepwise.state_dict()[key], tensor)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_macs_fall_as_predicted(name):
    """Parameters of each group alone: those of its members. MACs: of a model built anew."""
    model = built(name).float()
    groups, tensors, channels = model.channel_groups(), dict(model.named_parameters()), some(model)
    for one in ({group: removed} for group, removed in channels.items()):
        left = sum(tensor.numel() for tensor in cut(tensors, groups, one).values())
        assert n_params(remove(model, one)) == left < n_params(model)
    pruned = remove(model, channels)
    same_sizes = SYSTEMS[system(name)][1](pruned.config)
    assert pruned.macs(1) == same_sizes.macs(1) < model.macs(1)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_file_alone_rebuilds_the_pruned_model(name, tmp_path):
    """And it trains on: a gradient for every parameter."""
    model = built(name).float()
    pruned = remove(model, some(model))
    x = noisy(model).float()
    loaded = speechlab.load(speechlab.save(tmp_path / "pruned.safetensors", pruned))
    assert loaded.config == pruned.config and torch.equal(loaded(x), pruned(x))
    with torch.enable_grad():
        pruned(x).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


@pytest.mark.parametrize("name", STREAMING)
@torch.no_grad()
def test_pruned_models_stream(name):
    """Chunk law on the fused path and on the modules; prefix law."""
    model = built(name)
    pruned = remove(model, some(model)).float()
    x = noisy(model, 0.03)[:1].float()
    whole = pruned(x)
    for path in (None, "modules"):
        stream = Stream(pruned, path)
        parts = [stream.feed(chunk) for chunk in x.split([7, 1, 90, x.shape[-1] - 98], -1)]
        close(torch.cat([*parts, stream.flush()], -1), whole, atol=2e-6)
    cut_at = x.shape[-1] - 50
    settled = max(0, cut_at - pruned.look_ahead)
    close(pruned(x[..., :cut_at])[..., :settled], whole[..., :settled], atol=2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_widths_of_now_are_the_same_model(name):
    """Also of one that was pruned: then the same configuration."""
    model = built(name)
    pruned = remove(model, some(model))
    for before in (model, pruned):
        same = sketch(before, {})
        shapes = {key: tensor.shape for key, tensor in before.state_dict().items()}
        assert {key: tensor.shape for key, tensor in same.state_dict().items()} == shapes
    assert same.config == pruned.config


@pytest.mark.parametrize("name", ["E8_pruned-200K", "E8_pruned-2M", "E6_pruned-500k"])
@torch.no_grad()
def test_published_pruned_weights_are_pruned_further(shared, name):
    """Their configuration is the one that a removal gives."""
    folder = shared / "upstream_checkpoints/cleanumamba"
    model = speechlab.load(folder / f"CleanUMamba-3N-{name}.pkl")
    assert sketch(model, {}).config == model.config
    channels = some(model)
    pruned, x = remove(model, channels), noisy(model).float()
    close(pruned(x), masked(model, channels)(x), atol=1e-5)


def test_the_given_model_stays_as_it_is():
    model = built("cleanumamba-mamba").requires_grad_(False).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = remove(model, some(model))
    assert pruned.training and not any(p.requires_grad for p in pruned.parameters())
    for tensor in pruned.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"encode_dwon_0": [0]}, "'encode_dwon_0' (did you mean 'encode_down_0'?); there are"),
        ({"d_state1": [4]}, "d_state1 has channels 0 to 3, not 4"),
        ({"d_state1": [-1]}, "d_state1 has channels 0 to 3, not -1"),
        ({"d_state0": [0, 1, 2, 3, 3]}, "d_state0 has 4 channels; at least one must stay"),
    ],
)
def test_errors_are_one_line(channels, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        remove(built("cleanumamba-mamba"), channels)
    assert "\n" not in str(error.value)


def test_a_model_without_groups_is_refused():
    with pytest.raises(UserError, match="SuDoRMRF lists no channel groups"):
        remove(SYSTEMS["sudormrf"][1](), {"d_model": [0]})
