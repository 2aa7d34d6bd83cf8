"""Whole Keras models to ONNX: recurrent layers as fused operators, the rest as tf2onnx writes it.

inputs             how a model is called, and what its outputs are called
trace, process     tf2onnx with a stub in the place of each recurrent layer, here or in a process on TensorFlow
layers, operators  layers and TensorFlow operators that are written otherwise for it; calls replaces and puts back
splice, masks      what is written in the place of each stub, under a mask of any shape
execute, proof     the model's own forward pass, and what it proves of a loop
export             all of it, which the door calls

tensorflow and tf2onnx are imported by trace, layers and operators alone.
"""
