"""Losses: functions, estimate first, values per example.

waveform  L1, SNR, SI-SDR, multi-resolution STFT
pit       the best order of estimates: permutation-invariant training
spectral  magnitude, phase, complex spectrum, consistency
"""
