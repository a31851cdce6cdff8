"""Models of other papers, for comparison.

conv_tasnet  Conv-TasNet
dprnn        dual-path RNN
sepformer    SepFormer
sudormrf     SuDoRM-RF improved
wiener       the Wiener filter, without training
"""
