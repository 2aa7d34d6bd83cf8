"""An imported ONNX graph as a `torch.fx.Graph`: one line of code a node.

facts, rules       what is known before anything runs, and the operators that a plain torch function computes exactly
operator, calls    what computes all others, and the functions around native layers
names              paths of modules, and names of variables
writing            the graph
"""
