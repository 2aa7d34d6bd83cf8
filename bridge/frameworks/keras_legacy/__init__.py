"""Whole models out of h5 files of Keras 1 and 2, as live Keras 3 models that compute what they computed there.

graph, layers      the calls of the model and its layers, made again
options            what is dropped, renamed, pinned and refused of a layer's configuration
weights            the arrays, put into the layers
functions          what Keras 2 had and Keras 3 lacks
loading            all of it, which keras_files calls
"""
