"""Spectrograms show a tone where it is, as loud as it is; phases, where there is energy."""

import math

import pytest
import torch

from speechlab.audio.spectrum import FrontEnd, Spectrum
from speechlab.report.spectrogram import (
    as_table,
    is_loud,
    loudest_phases,
    phase_errors,
    spectrogram_db,
)

FRONT_END = FrontEnd(n_fft=256, hop_length=64, win_length=256)
TONE = 16  # the bin that its frequency is the middle of: 1 kHz


def tone(phase: float = 0.0) -> Spectrum:
    samples = torch.arange(16000)
    turn = 2 * math.pi * TONE / FRONT_END.n_fft * samples + phase
    return FRONT_END.analyse(torch.cos(turn))


def test_a_sine_of_full_scale_is_0_db_at_its_frequency():
    seconds = torch.arange(16000) / 16000
    levels = spectrogram_db(torch.sin(2 * torch.pi * 1000 * seconds)[None], 16000)
    middle = levels.iloc[:, levels.shape[1] // 2]
    assert abs(middle.idxmax() - 1000) <= 1000 / 32
    assert abs(middle.max()) < 0.1
    assert levels.columns[-1] <= 1.0


def test_silence_one_sample_and_hours_are_shown():
    assert spectrogram_db(torch.zeros(2, 1), 8000).to_numpy().max() <= -119
    assert spectrogram_db(torch.zeros(1, 8000 * 600), 8000).shape[1] <= 1002


def test_a_spectrum_has_its_front_ends_bins_and_frames():
    table = as_table(tone().mag, FRONT_END, 16000)
    assert table.shape == (FRONT_END.n_freqs, 251)
    assert (table.index[TONE], table.index[-1], table.columns[-1]) == (1000, 8000, 1)
    assert (table.iloc[:, 5:-5].idxmax() == 1000).all()


def test_loud_is_by_the_level_before_compression():
    reference = Spectrum(torch.tensor([[1.0, 0.011, 0.009]]) ** FRONT_END.compress, torch.zeros(3))
    assert is_loud(reference, FRONT_END).tolist() == [[True, True, False]]  # 40 dB are a hundredth


def test_the_phase_of_a_steady_tone_stays_and_quiet_bins_have_none():
    tables = loudest_phases({"a": tone(), "b": tone(1.0)}, tone(), FRONT_END, 16000)
    phases = [table.loc[1000].iloc[2:-2] for table in tables.values()]
    assert phases[0].std() < 1e-3
    assert (phases[1] - phases[0]).to_numpy() == pytest.approx(1.0, abs=1e-2)
    assert tables["a"].index[-1] <= 1500 and math.isnan(tables["a"].loc[250].iloc[5])
    seconds = tables["a"].columns
    assert seconds[-1] - seconds[0] <= 0.3


def test_errors_of_the_phase_go_the_short_way_round():
    for turn in (-3.0, -0.5, 0.5, 3.0):
        errors = phase_errors({"a": tone(turn + 2 * math.pi)}, tone(), FRONT_END)
        assert errors["a"].median() == pytest.approx(turn, abs=1e-2)
    assert len(errors) == is_loud(tone(), FRONT_END).sum()
