"""Models on recordings: files, folders, streams.

enhance          noisy files and folders to enhanced ones
separate         mixtures to one file per speaker
batch            which files a command means, what became of each, the log
long_recordings  long recordings through models that need the whole input
overlap_add      overlapping chunks, their speakers ordered, joined again
stream           one signal through a causal model, chunk by chunk
fused            the fast step of a stream on a CPU
cells            layers of the fast step
live             microphone or file in, loudspeaker or file out
devices          microphones and loudspeakers
"""
