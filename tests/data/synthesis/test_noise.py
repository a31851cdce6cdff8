"""Noise is what its name says, and a function of its generator alone."""

import hashlib
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from speechlab.data.synthesis import noise

RATE = 16000
N_FRAMES = 4 * RATE
SIZE = (N_FRAMES, RATE)
RULES = {
    "coloured": lambda random: noise.coloured(random, *SIZE, slope=-1.0),
    "modulated": lambda random: noise.modulated(random, *SIZE),
    "impulsive": lambda random: noise.impulsive(random, *SIZE),
    "hum": lambda random: noise.hum(random, *SIZE),
    "babble": lambda random: noise.babble(random, list(random.normal(size=(3, RATE))), N_FRAMES),
}


# Prints the last bits of NumPy's functions, then what becomes of each rule in 16 bits.
PROGRAM = """
import hashlib, importlib.util, json, sys
import numpy as np
spec = importlib.util.spec_from_file_location("laws", sys.argv[1])
laws = importlib.util.module_from_spec(spec)
spec.loader.exec_module(laws)
print(json.dumps([laws.last_bits(), laws.in_16_bits()]))
"""


def last_bits():
    ramp = np.linspace(0, 50, 100001)
    return hashlib.sha256(np.sin(ramp).tobytes() + np.exp(ramp).tobytes()).hexdigest()


def in_16_bits():
    found = {}
    for name, rule in RULES.items():
        samples = rule(generator())
        steps = np.rint(samples / np.abs(samples).max() * 2**14).astype("<i2")
        found[name] = hashlib.sha256(steps.tobytes()).hexdigest()
    return found


def generator(seed=0):
    return np.random.default_rng(seed)


def crest_db(samples):
    return 20 * np.log10(np.abs(samples).max() / noise.rms(samples))


def levels_db(samples, n_frames=800):
    """Power of each 50 ms."""
    return 10 * np.log10(np.mean(samples.reshape(-1, n_frames) ** 2, axis=1))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_function_of_the_generator(rule):
    first, again, other = (rule(generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert first.shape == (N_FRAMES,) and first.dtype == np.float64
    assert np.isfinite(first).all() and noise.rms(first) > 0


@pytest.mark.parametrize(("name", "slope"), noise.SLOPES.items())
def test_colours_have_their_slopes(name, slope):
    """Power per hertz in octaves from 62 Hz to 4 kHz, fitted on both axes' logarithms."""
    samples = noise.coloured(generator(), 10 * RATE, RATE, slope)
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    lowest = 62.5 * 2.0 ** np.arange(7)
    per_hertz = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in lowest]
    fitted = np.polyfit(np.log(lowest), np.log(per_hertz), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.1), name


def test_coloured_noise_has_no_seam():
    """It loops without a step."""
    samples = noise.coloured(generator(), *SIZE, slope=-2.0)
    steps = np.abs(np.diff(samples))
    assert abs(samples[0] - samples[-1]) < 4 * steps.std() + steps.mean()


def test_modulated_noise_swells_and_steady_noise_does_not():
    for seed in range(4):
        swelling = np.std(levels_db(noise.modulated(generator(seed), *SIZE)))
        steady = np.std(levels_db(noise.coloured(generator(seed), *SIZE, slope=0.0)))
        assert swelling > 2 > 0.5 > steady


def test_impulses_stand_out():
    for seed in range(4):
        assert crest_db(noise.impulsive(generator(seed), *SIZE)) > 20
        assert crest_db(noise.coloured(generator(seed), *SIZE, slope=0.0)) < 15


def test_hum_is_lines():
    """Nearly all power is in a hundredth of the spectrum."""
    for seed in range(4):
        power = np.sort(np.abs(np.fft.rfft(noise.hum(generator(seed), *SIZE))) ** 2)[::-1]
        assert power[: len(power) // 100].sum() > 0.9 * power.sum()


def test_babble_is_the_sum_of_its_speakers():
    """Their powers add, each within 3 dB of 1, however long or short a talk is."""
    talks = [generator(n).normal(size=n_frames) for n, n_frames in enumerate((900, 5000, 80000))]
    power = np.mean(noise.babble(generator(), talks, N_FRAMES) ** 2)
    assert 3 * 10**-0.3 < power < 3 * 10**0.3


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86's features")
def test_in_16_bits_the_same_on_a_lesser_processor():
    """NumPy's and glibc's own switches turn AVX2, FMA and AVX-512 off."""
    lesser = {
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-AVX",
    }
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, __file__]
    run = subprocess.run(command, env={**os.environ, **lesser}, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"this NumPy cannot do with less: {run.stderr[-200:]}")
    bits, steps = json.loads(run.stdout)
    if bits == last_bits():
        pytest.skip("this processor has no more than that")
    assert steps == in_16_bits()
