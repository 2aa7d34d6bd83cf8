"""Whole torch models to ONNX: recurrent layers as fused operators, the rest as torch's own exporter writes it.

inputs, capture    the example, and one quiet run of torch's exporter
stubs, ops         opaque operators in the place of recurrent layers and of packing
loops, rolling     a Python loop over a cell, sampled, and its steps as one sequence again
splice             what is written in the place of each stub
execute, proof     the model's own forward pass, and what it proves of a loop
export             all of it, which the door calls
"""
