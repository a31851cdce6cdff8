"""Weights: load, save, import and download.

checkpoints  load, save and import weights without executing code from a file
hub          the published files: list, download, verify (`weights.csv`)
own          the files that this study made, in checkpoints/
converters   one converter per published system, by name
conversion   rename tensors, read sizes off them: what all converters share
names        published tensor names: recognition, prefixes, renaming
codec        tensor names that SEMamba and MP-SENet share
cleanumamba  converter for CleanUMamba
semamba      converter for SEMamba
mpsenet      converters for MP-SENet and its variants
sepmamba     converter for SepMamba
"""
