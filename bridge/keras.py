"""What Keras must know before it loads a model that bridge has made: imported graphs, and bridge's own cell.

Keras imports no other package for a class that a file names, so a process that loads such a file imports this module
first, which registers them:

>>> import bridge.keras, keras
>>> keras.saving.get_registered_object("bridge>ImportedGraph") is bridge.keras.ImportedGraph
True
"""

from __future__ import annotations

from bridge.frameworks.keras_registered import ImportedGraph, ImportedModel, RecurrentCell, keras2_hard_sigmoid

__all__ = ["ImportedGraph", "ImportedModel", "RecurrentCell", "keras2_hard_sigmoid"]
