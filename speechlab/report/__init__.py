"""Tables and figures of the papers, from committed CSVs; nothing here imports PyTorch.

paper             every table and figure: the program of `make paper`
markdown          a table as data: rows, columns and a note; writes CSV and Markdown
cleanumamba       tables of CleanUMamba
spectral          tables of SEMamba and MP-SENet
separation        tables of SepMamba and U-Mamba-Net
figures           a DataFrame in, a figure out
figures_spectral  figures of spectra, phases and metric GANs
spectrogram       levels in dB over time and frequency
"""
