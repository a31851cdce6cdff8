"""Layers of the models.

scan            the selective scan: reference loop, parallel form, fused kernels, one contract
mixers          sequence mixers (Mamba, Mamba-2, S4, LSTM, attention) with one signature
s4              S4, as a convolution and as a recurrence
channels        channel groups: channels that can only be removed together
stacks          stacks of mixers, as CleanUMamba wires them
conv            strided convolutions of a signal that arrives in chunks
bidirectional   Mamba in both directions
transformer     post-norm Transformer layers with heads of any width
time_frequency  attention and recurrence along time and along frequency (MP-SENet)
conformer       the Conformer block
dense           dilated dense encoder and decoders of the spectral models
dual_path       dual-path processing: within chunks, then across chunks
kernels         compiled CPU kernels
"""
