"""The command `speechlab`.

main      the parser, and commands that process, score and list
training  commands of data, training and the study
doctor    versions, devices, kernels in use
"""
