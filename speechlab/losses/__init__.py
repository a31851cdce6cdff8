"""Losses: functions, estimate first, values per example.

waveform  L1, SNR, SI-SDR, multi-resolution STFT, permutation-invariant training
spectral  magnitude, phase, complex spectrum, consistency
"""
