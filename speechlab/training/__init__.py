"""The training loop and what it needs.

loop           the one training loop; interrupt at any time, it resumes exactly
state          the state of a training, and one step
schedule       settings of a training; learning rate over the steps
objectives     a model and its losses, in phases
distillation   a model learns a teacher's output, from rest and from passed states
metric_gan     training with a discriminator that predicts PESQ
discriminator  the metric discriminator
pesq_targets   PESQ of estimates, in worker processes
distributed    several processes as one, started by torchrun
loggers        CSV, TensorBoard, Weights & Biases
progress       progress of a training: rows of the loggers, a report
runs           a folder per training; list and compare
"""
