"""One corpus a module; `data prepare NAME` makes its folder.

catalogue         the corpora by name, and their folders
corpus            the type: licence, source, settings, how to prepare
prepare           conversion in parallel, resumable, always the same bytes
survey            reads every source before conversion: faults, scale, channels
shards            finished work of an interrupted preparation, with digests
synthetic         generated speech, noise and rooms
two_speakers      two speakers at once, from another corpus, clean or noisy
folder            your own recordings: pairs, or speech and noise
voicebank_demand  VoiceBank-DEMAND
dns2020           DNS-2020
libri2mix         Libri2Mix
wsj0_2mix         WSJ0-2mix
"""
