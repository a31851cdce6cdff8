"""Tables and figures of the papers, from committed CSVs.

cleanumamba         tables of CleanUMamba; the program behind `make paper`
spectral            tables of SEMamba and MP-SENet
separation          tables of SepMamba and U-Mamba-Net
figures             a DataFrame in, a figure out
figures_spectral    figures of spectra, phases and metric GANs
figures_separation  figures of separated speakers
spectrogram         levels in dB over time and frequency
"""
