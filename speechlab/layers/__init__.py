"""Parts of models that multiply: the selective scan, sequence mixers, convolution stacks."""
