"""Scores, their statistics, and cost.

evaluate            one row per file (and speaker) of a test set
inputs              files of a row: digest, scale, length, pairing
dev_files           scores on whole dev files, for validation and notebooks
summaries           means per file, means with intervals, failures
metrics             PESQ, STOI, SI-SDR and the others, by the field's packages
separation_metrics  SI-SDRi, SDRi, SIR in the best order of the speakers
composite           CSIG, CBAK, COVL and segmental SNR
estimates           where estimates come from: a model, files, the input
rows                the CSV file of a run, which a rerun resumes
statistics          intervals, paired differences, tests, several seeds
cost                time and latency on this machine
memory              memory that a call takes
"""
