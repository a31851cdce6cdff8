"""Models on recordings: files, folders, streams.

enhance          noisy files and folders to enhanced ones
separate         mixtures to one file per speaker
jobs             input files and folders to output files
batch            runs jobs, writes files, keeps the log
long_recordings  long recordings through models that need the whole input
overlap_add      overlapping chunks and their cross-fade
ordering         speakers in one order over chunks and channels
stream           one signal through a causal model, chunk by chunk
fused            the fast step of a stream on a CPU
cells            layers of the fast step
live             microphone or file in, loudspeaker or file out
devices          microphones and loudspeakers
"""
