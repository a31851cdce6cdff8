"""Sound files and signals, before any model.

files       read and write sound files; resample; recordings in blocks
folders     sound files under a folder, and what is left out
containers  checks whether a sound file is complete, from the length its header states
ogg         Ogg pages: completeness, and chained streams as one signal
stft        the one short-time Fourier transform
spectrum    compressed magnitude and phase of a waveform, and the way back
level       the level that a model divides its input by
offset      the mean of a file, and the high-pass of a stream
robust      a file without its offset, at a level that one bang does not change
pcs         perceptual contrast stretching
pitch       median fundamental frequency of a speaker
"""
