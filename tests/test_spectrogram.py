"""Spectrograms show a tone where it is, as loud as it is."""

import torch

from speechlab.spectrogram import spectrogram_db


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
