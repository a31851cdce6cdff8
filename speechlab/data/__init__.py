"""Training data and test sets.

manifest    what a prepared corpus holds: one CSV line per recording
digests     SHA-256 of every file of a prepared corpus, and what has changed
recordings  segments of recordings, at a rate and speed
mixing      training examples: mixtures at an SNR, segments of pairs
streams     long streams for development: many recordings, other levels, pauses
loader      batches from any position, in one process or several
splits      train and dev of several corpora, checked to be disjoint
pairs       whether noisy and clean belong together: lag, SNR, correlation, channels
test_sets   test sets on disk: mixtures, their sources, known published sets
corpora     one corpus a module: downloaded or generated, converted, split
synthesis   synthetic speech, noise and rooms
"""
