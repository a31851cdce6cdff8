"""The command `speechlab`: one module per group of commands.

main        the command, exit codes, errors
parser      arguments: errors of one line, near names, examples
options     options that several commands share, checked before torch is imported
output      tables and lines that commands print
process     enhance, separate, stream
evaluate    evaluate, check-metrics
weights     weights, import
data        data
train       train, resume, finetune, prune, runs
study       study
doctor      doctor
completion  completion
"""
