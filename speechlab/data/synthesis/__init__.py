"""Synthetic material for the default corpus.

speech  sentences and voices, spoken by espeak-ng
espeak  the espeak-ng program, one utterance per process
noise   five kinds of noise, from a random generator
rooms   room impulse responses by the image-source method
"""
